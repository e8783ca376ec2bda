"""Images and models taken away from a tiny study that really ran."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from mgdm_ray import sample
from mgdm_ray.config import MEASUREMENTS as NAMES
from mgdm_ray.config import DatasetConfig
from mgdm_ray.config.data import ColumnsConfig
from mgdm_ray.data.load import to_uint8
from mgdm_ray.data.sources.source import list_source
from mgdm_ray.diffusion.guidance import MEASUREMENTS, register_measurement
from mgdm_ray.pipeline.plan import Job
from mgdm_ray.pipeline.tasks.images import read_rows
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.storage.records import Record
from tests.conftest import ROOT
from tests.results.export.example import ARMS, DATASET, IMAGES, Finished, finished_study

PAGE = ROOT / "docs" / "take-away.md"


@pytest.fixture(scope="module")
def finished() -> Finished:
    return finished_study()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels_of(folder: Path) -> dict[int, np.ndarray]:
    """Images by index."""
    return {int(r["index"]): np.array(Image.open(folder / r["file"])) for r in rows_of(folder)}


def manifest_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("arm", ARMS)
def test_the_study_s_own_images_come_out(finished: Finished, tmp_path: Path, arm: str) -> None:
    """Would catch another seed, label, setting, direction or grid than the jobs have: bit-equal to
    the artefact, for the batches are the same."""
    assert finished.sample("--arm", arm, "--number", IMAGES, "--out", tmp_path / "made") == 0
    kind = "generate" if arm == "generate" else "decode"
    images, labels = read_rows(finished.folder(kind, None if kind == "generate" else arm))
    own = to_uint8(images)[..., 0]
    made, rows = pixels_of(tmp_path / "made"), rows_of(tmp_path / "made")
    assert [int(r["label"]) for r in rows] == labels.tolist()
    assert len(own) == IMAGES
    np.testing.assert_array_equal(np.stack([made[i] for i in range(IMAGES)]), own)
    expected = finished.record(kind, None if kind == "generate" else arm).setting
    assert manifest_of(tmp_path / "made")["setting"] == expected


def test_an_image_does_not_depend_on_the_others(finished: Finished, tmp_path: Path) -> None:
    """Would catch noise or labels that depend on how many images are made, on the batch size, or
    on where the count begins."""
    assert finished.sample("--number", 30, "--seed", 5, "--out", tmp_path / "all") == 0
    options = ["--seed", "5", "--batch", "3", "--first", "17", "--number", "7"]
    assert finished.sample(*options, "--out", tmp_path / "part") == 0
    whole, part = pixels_of(tmp_path / "all"), pixels_of(tmp_path / "part")
    assert sorted(part) == list(range(17, 24))
    for index, image in part.items():
        assert np.abs(image.astype(int) - whole[index]).max() <= 1
    labels = {int(r["index"]): r["label"] for r in rows_of(tmp_path / "all")}
    assert all(labels[int(r["index"])] == r["label"] for r in rows_of(tmp_path / "part"))
    assert len({image.tobytes() for image in whole.values()}) == 30


def test_the_folder_says_what_it_is(finished: Finished, tmp_path: Path) -> None:
    """Would catch an image that does not say that it is synthetic, a row without its file, and
    counts, keys or licences that are not those of the study."""
    out = tmp_path / "new" / "made"
    assert finished.sample("--number", 6, "--seed", 3, "--out", out) == 0
    rows, manifest = rows_of(out), manifest_of(out)
    keys = {"denoiser": finished.job("fit_denoiser").key, "guide": finished.job("fit_guide").key}
    assert {r["file"] for r in rows} == {str(p.relative_to(out)) for p in out.rglob("*.png")}
    for row in rows:
        text = Image.open(out / row["file"]).text  # type: ignore[attr-defined]
        assert text["synthetic"] == "true"
        assert text["study"] == "quickstart"
        assert text["generator"].startswith("mgdm-ray ")
        assert text["licence"] == "Apache-2.0"
        assert json.loads(text["seed"]) == {"x_T": ["generate", 3, "x_T", int(row["index"])]}
        assert json.loads(text["setting"]) == manifest["setting"] == json.loads(row["setting"])
        assert {name: row[name] for name in keys} == keys
    assert manifest["synthetic"] is True
    assert manifest["images"] == 6
    assert {c["class"]: c["images"] for c in manifest["classes"]} == Counter(
        r["class"] for r in rows
    )
    assert manifest["judged_images_of_the_study"] == finished.record("assess", "disturb").metrics
    assert manifest["licence"] == "Apache-2.0"
    assert not list(out.parent.glob(".*"))


def test_the_folder_is_a_dataset(finished: Finished, tmp_path: Path) -> None:
    """Would catch a folder that neither this package nor others can read, by class folders or by
    its manifest, or that is read with other labels."""
    out = tmp_path / "made"
    assert finished.sample("--number", 8, "--out", out) == 0
    labels = {r["file"]: int(r["label"]) for r in rows_of(out)}
    config = DatasetConfig(name="made", path=str(out), size=16)
    listing = list_source(config, out)
    assert listing.classes == ("benign", "malignant")
    assert {item.path: item.label for item in listing.items} == labels
    columns = ColumnsConfig(path="file", label="class")
    table = list_source(config.model_copy(update={"columns": columns}), out / "manifest.csv")
    assert {item.path: item.label for item in table.items} == labels
    others = ImageFolder(str(out))
    assert {str(Path(p).relative_to(out)): label for p, label in others.samples} == labels
    assert others[0][0].size == (16, 16)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--label", "malignant"], [1] * 5),
        (["--label", "0"], [0] * 5),
        (["--classes", "balanced"], [0, 1, 0, 1, 0]),
        (["--classes", "training"], None),
    ],
)
def test_labels_are_those_asked_for(
    finished: Finished, tmp_path: Path, options: list[str], labels: list[int] | None
) -> None:
    """Would catch a class that is taken for another one."""
    out = tmp_path / "made"
    assert finished.sample("--arm", "generate", "--number", 5, *options, "--out", out) == 0
    found = [int(r["label"]) for r in rows_of(out)]
    assert found == labels if labels else set(found) == {0, 1}


def test_a_setting_can_be_changed(finished: Finished, tmp_path: Path) -> None:
    """Would catch an override that reaches the manifest but not the images, or the reverse."""
    for name, options in {
        "own": [],
        "strong": ["--set", "uncertainty_scale=0.4", "--set", "measurement=margin"],
        "off": ["--set", "uncertainty_scale=0"],
        "towards": ["--set", "classifier_scale=2"],
        "round": ["--arm", "roundtrip"],
    }.items():
        assert finished.sample("--number", 4, *options, "--out", tmp_path / name) == 0
    images = {name: np.stack(list(pixels_of(tmp_path / name).values()))
              for name in ("own", "strong", "off", "towards", "round")}  # fmt: skip
    np.testing.assert_array_equal(images["off"], images["round"])
    for name in ("strong", "towards", "off"):
        assert (images[name] != images["own"]).any()
    strong = manifest_of(tmp_path / "strong")
    assert strong["setting"]["uncertainty_scale"] == 0.4
    assert strong["setting"]["measurement"] == "margin"
    assert strong["setting_is"] == "the search's, changed by hand"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--label", "benine"], ["'benine'", "'benign'", "malignant"]),
        (["--label", "2"], ["label 2", "0 'benign', 1 'malignant'"]),
        (["--set", "uncertainty_scale=-1"], ["--set uncertainty_scale", "0", "-1"]),
        (["--set", "uncertainty=1"], ["--set uncertainty", "uncertainty_scale"]),
        (["--set", "measurement=entropie"], ["'entropie'", "'entropy'"]),
        (["--set", "guidance_scale=51"], ["guidance_scale", "50", "51"]),
        (["--set", "gradient=[1"], ["gradient=[1"]),
        (
            ["--arm", "roundtrip", "--set", "uncertainty_scale=1"],
            ["uncertainty_scale", "roundtrip"],
        ),
        (["--dataset", "phantom-xray"], ["--dataset", "'phantom-xray'", DATASET]),
        (["--number", "0"], ["--number", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--batch", "0"], ["--batch", "0"]),
        (["--device", "quantum"], ["--device quantum", "cpu"]),
        (["--label", "0", "--classes", "balanced"], ["--label", "--classes"]),
    ],
)
def test_wrong_input_is_named(
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: list[str],
) -> None:
    """Would catch a traceback, a silent default, or a folder that stays behind."""
    out = tmp_path / "made"
    assert finished.sample("--number", 2, "--out", out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert [word for word in named if word not in error] == []
    assert list(tmp_path.iterdir()) == []


def test_studies_that_cannot_give_any(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a study that is unfinished, absent, or without these models, and images that a
    study says may not be shown."""
    storage = ["--storage", str(finished.storage), "--number", "2", "--out", str(tmp_path / "made")]

    def error_of(study: str | Path, *options: str) -> str:
        assert sample.main([str(study), *storage, *options]) == 2
        return capsys.readouterr().err

    file = tmp_path / "study.yaml"
    longer = {"steps": 7, "unet": {"channels": [16, 16], "attention": [False, False]}}
    unfinished = f"python -m mgdm_ray.study {file} --storage {finished.storage}"
    assert unfinished in error_of(finished.write(file, guide=longer))
    assert unfinished in error_of(finished.write(file, seed=1), "--arm", "generate")
    error = error_of("nobody")
    assert "'nobody'" in error
    assert "quickstart" in error
    assert "'../quickstart'" in error_of("../quickstart")
    assert "absent.yaml" in error_of(tmp_path / "absent.yaml")
    assert "guide" in error_of(finished.write(file, arms=["real", "generate", "roundtrip"]))
    both = finished.write(file, datasets=[DATASET, "phantom-xray"])
    assert f"{DATASET}, phantom-xray" in error_of(both)
    hidden = [{"name": DATASET, "phantom": {"train": 40, "val": 20, "test": 20}, "pictures": False}]
    secret = finished.write(file, datasets=hidden)
    assert "pictures: false" in error_of(secret)
    assert not (tmp_path / "made").exists()
    assert sample.main([str(secret), *storage, "--pictures-anyway", "--arm", "generate"]) == 0


def test_images_of_a_refused_arm_are_warned_of(
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch images passed on without a word that the study itself refuses to use."""
    stored = FinishedStudy.record

    def flipped(study: FinishedStudy, job: Job) -> Record:
        record = stored(study, job)
        rates = {"flip_rate": 0.9, "flip_rate_real": 0.1} if job.kind == "assess" else {}
        return replace(record, metrics={**record.metrics, **rates})

    monkeypatch.setattr(FinishedStudy, "record", flipped)
    file = finished.write(tmp_path / "study.yaml", limits={"flips": 0.2})
    options = ["--storage", str(finished.storage), "--number", "1", "--out"]
    assert sample.main([str(file), *options, str(tmp_path / "made")]) == 0
    refused = manifest_of(tmp_path / "made")["refused_by_the_limits_of_the_study"]
    assert refused.startswith("limits.flips")
    assert refused in capsys.readouterr().err


def test_a_damaged_artefact_is_not_used(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch images made with weights that are not those of the study."""
    storage = tmp_path / "runs"
    shutil.copytree(finished.storage, storage)
    weights = next(storage.glob("artifacts/fit_denoiser/*/weights.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    options = ["--number", "2", "--out", str(tmp_path / "made")]
    assert sample.main(["quickstart", "--storage", str(storage), *options]) == 2
    assert "weights.safetensors" in capsys.readouterr().err


def test_nothing_is_written_over(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch images among somebody's files, or in place of them."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        for option in (["--number", "1", "--out"], ["--export"]):
            assert finished.sample(*option, tmp_path / name) == 2
            assert f"{option[-1]} {tmp_path / name}:" in capsys.readouterr().err
    assert finished.sample("--number", 1, "--arm", "generate", "--out", tmp_path / "empty") == 0
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"full", "file", "empty"}


@pytest.mark.parametrize(("ending", "code"), [("nan", 2), ("SIGTERM", 130)])
def test_half_a_result_stays_nowhere(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, code: int
) -> None:
    """Would catch a folder that looks whole after sampling broke; a user's own measurement breaks
    it in the second stage."""

    @register_measurement("broken_for_tests")
    def broken(logits: torch.Tensor, *_: object) -> torch.Tensor:
        if ending == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        return logits.sum(dim=1) * float("nan")

    handler = signal.getsignal(signal.SIGTERM)
    options = ["--set", "measurement=broken_for_tests"]
    try:
        made = finished.sample("--number", 2, *options, "--out", tmp_path / "made")
    finally:
        del MEASUREMENTS["broken_for_tests"]
        NAMES.remove("broken_for_tests")
    assert made == code
    assert ("uncertainty_scale" in capsys.readouterr().err) is (ending == "nan")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == handler


def python_block(page: Path) -> str:
    [block] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5
    return str(block)


def test_the_page_is_true(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a command or a line of Python on docs/take-away.md that does not work, and a
    model card whose five lines do not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(finished.storage)
    commands = re.findall(r"^python -m mgdm_ray\.sample (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert sample.main(shlex.split(command)) == 0
    assert Counter(r["class"] for r in rows_of(Path("made-malignant"))) == {"malignant": 40}
    exec(compile(python_block(PAGE), str(PAGE), "exec"), {})
    assert len(list(Path("four").glob("*.png"))) == 4
    exec(compile(python_block(Path("models/README.md")), "README.md", "exec"), {})
    pictures = sorted(Path("made").glob("0*.png"))
    assert len(pictures) == 4
    assert all(Image.open(p).text["synthetic"] == "true" for p in pictures)  # type: ignore[attr-defined]


def test_the_card_says_what_was_measured(finished: Finished, tmp_path: Path) -> None:
    """Would catch a number that is not the study's, and one that is missing."""
    assert finished.sample("--export", tmp_path / "models") == 0
    card = (tmp_path / "models" / "README.md").read_text(encoding="utf-8")
    curve = json.loads((finished.folder("fit_guide") / "accuracy_over_t.json").read_text())
    for t, accuracy, ece in zip(curve["t"], curve["balanced_accuracy"], curve["ece"], strict=True):
        assert f"| {t} | {accuracy:.3f} | {ece:.3f} |" in card
    for arm in ARMS:
        metrics = finished.record("assess", arm).metrics
        assert f"| {arm} | {IMAGES} | {metrics['fd']:.3g} | {metrics['fd_real']:.3g} |" in card
        assert f"{arm} {metrics['copy_rate']:.3g}" in card
    assert "Apache-2.0" in card
    assert f"{finished.record('search').metrics['best_score']:.3f}" in card
    assert {p.name for p in (tmp_path / "models").iterdir()} == {
        "README.md", "config.json", "denoiser.safetensors", "guide.safetensors",
    }  # fmt: skip
