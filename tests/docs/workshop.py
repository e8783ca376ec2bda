"""A folder in which the commands of the pages run as they stand, on studies of seconds.

Only sizes are changed: the study files are the shipped ones with fewer steps, images and networks,
and the data sets they name are drawn by code.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.conftest import ROOT
from tests.docs.blocks import Block, all_blocks

LINKED = (
    "Makefile",
    "benchmarks",
    "constraints.txt",
    "docs",
    "mgdm_ray",
    "pyproject.toml",
    "tests",
)
UNET = {"channels": [16, 16, 16], "attention": [False, False, False]}
SMALL: dict[str, Any] = {
    "denoiser": {"unet": UNET, "steps": 6, "batch_size": 8, "checkpoint_every": 3, "warmup": 0},
    "guide": {"unet": UNET, "steps": 4, "batch_size": 8, "checkpoint_every": 3, "warmup": 0},
    "sampling": {"num_inference_steps": 3, "inversion_iterations": 0},
    "judge": {"steps": 2, "batch_size": 8},
    "downstream": {"steps": 2, "batch_size": 8},
}
SMALL_SEARCH = {"trials": 2, "images": 8, "steps": 2}
SMALL_PHANTOM = {"train": 40, "val": 20, "test": 20}
WHOLE = ("quickstart",)
"""Studies that keep their networks and seeds, for a page shows what they print."""
IMAGES = {"train": 40, "val": 16, "test": 16}
PATIENCE_S = 60


@dataclass(frozen=True)
class Workshop:
    """The folder, and what commands in it find."""

    folder: Path
    data: Path

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """The block's commands, one after the other, until one fails."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.script(block)],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )

    def serve(self, block: Block) -> bool:
        """Whether the block's server answers; it is stopped again."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script = f"exec {self.script(block).strip()} --port {port} --workers 1"
        with (self.folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                ["bash", "-euc", script], cwd=self.folder, env=self.environment(),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                return _answers(server, port)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, 15)
                server.wait(PATIENCE_S)

    def script(self, block: Block) -> str:
        """With the folders of this place for those that pages speak of."""
        script = re.sub(r"/tmp/(?=[\w-]+)", f"{self.folder}/tmp/", block.script)
        return script.replace("/data/medmnist", str(self.data))

    def environment(self) -> Mapping[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        search = f"{self.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return {
            **os.environ,
            "PATH": programs,
            "PYTHONPATH": search.strip(os.pathsep),
            "MGDM_DATA_DIR": str(self.data),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }


def make_workshop(folder: Path) -> Workshop:
    """Study files, data and all files that the pages have their readers write."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    _environment_in(folder)
    (folder / "tmp").mkdir()
    studies = folder / "studies"
    studies.mkdir()
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        _write_small(studies / path.name, yaml.safe_load(path.read_text(encoding="utf-8")))
    for block in all_blocks():
        if block.path and block.path.endswith(".yaml"):
            _write_small(folder / block.path, yaml.safe_load(block.text))
        elif block.path:
            (folder / block.path).write_text(block.text, encoding="utf-8")
    data = folder / "data"
    data.mkdir()
    _draw_sets(data)
    return Workshop(folder, data)


def _environment_in(folder: Path) -> None:
    """What ``make`` takes for an environment that is set up already: the one of the tests."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for program in ("python", "ruff", "mypy", "mkdocs"):
        home = Path(sys.executable).parent / program
        if home.exists():
            runner = folder / ".venv" / "bin" / program
            runner.write_text(f'#!/bin/sh\nexec "{home}" "$@"\n', encoding="utf-8")
            runner.chmod(0o755)
    (folder / ".venv" / "installed").touch()


def _write_small(path: Path, study: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(small(study), sort_keys=False), encoding="utf-8")


def small(study: dict[str, Any]) -> dict[str, Any]:
    """The same study, of seconds: other sizes, nothing else."""
    found = {**study, **{key: {**study.get(key, {}), **value} for key, value in SMALL.items()}}
    found |= {"limits": {}, "resources": {}}  # so small a model may well copy; and it is quick
    found["datasets"] = [_small_set(one) for one in study["datasets"]]
    size = study.get("image_size", 28)
    found["image_size"] = size if size <= 28 else 28
    if study["name"] not in WHOLE:
        found |= {"networks": study["networks"][:1], "seeds": 1, "judge": None}
    if study.get("search"):
        found["search"] = {**study["search"], **SMALL_SEARCH}
        found["search"]["networks"] = found["search"]["networks"][:1]
        if study["name"] in WHOLE and found["search"].get("confirm"):
            found["search"]["confirm"] = {"settings": 2, "seeds": 1}
        else:
            found["search"].pop("confirm", None)
    found["synthetic"] = {"ratio": 0.5}
    return found


def _small_set(dataset: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(dataset, str):
        return dataset
    if "phantom" in dataset:
        return {**dataset, "phantom": {**dataset["phantom"], **SMALL_PHANTOM}}
    return {**dataset, "train_size": 40} if "train_size" in dataset else dataset


def _draw_sets(folder: Path) -> None:
    """Files in MedMNIST's format, of noise with a bright half: names and classes are real."""
    sets = {"breastmnist": (28, 2, 1), "retinamnist": (28, 5, 3), "pneumoniamnist": (28, 2, 1),
            "dermamnist": (28, 7, 3), "ham10000": (28, 7, 3), "my-scans": (64, 2, 1)}  # fmt: skip
    for name, (size, classes, channels) in sets.items():
        rng = np.random.default_rng(len(name))
        arrays: dict[str, Any] = {}
        for split, count in IMAGES.items():
            labels = np.arange(count) % classes
            images = rng.integers(0, 100, (count, size, size, channels), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[: size * (int(label) + 1) // (classes + 1)] += 100
            arrays[f"{split}_images"] = images if channels == 3 else images[..., 0]
            arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
        np.savez(folder / f"{name}.npz", **arrays)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.2)
    return False
