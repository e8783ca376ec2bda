"""The memory allocator's settings, in every process that computes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.environment import QUIET
from mgdm_ray.runtime import training
from tests.conftest import ROOT
from tests.runtime.test_training import task

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LINUX = sys.platform == "linux"
LIBC = os.confstr("CS_GNU_LIBC_VERSION") or "" if LINUX else ""
WANTED = QUIET["GLIBC_TUNABLES"]


def here(_: object = None) -> tuple[str, int]:
    """Those settings with which this process started; page faults of 20 tensors of 40 MB."""
    import torch

    # Not os.environ: glibc reads its settings before Python runs (and ends each with a NUL).
    started = Path("/proc/self/environ").read_text("utf-8")
    torch.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return ":".join(part for part in WANTED.split(":") if part in started), faults


class Actor:
    def here(self) -> tuple[str, int]:
        return here()


class Notes:
    """A Progress that writes down what ``here`` finds in its worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, done: int, *_: Any) -> None:
        if done == 1:
            (self.folder / "found").write_text(here()[0])


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="/proc and glibc are Linux's")
@pytest.mark.usefixtures("local_ray")
def test_tasks_actors_and_training_workers_have_the_settings(tmp_path: Path) -> None:
    """Would catch a kind of worker that starts without them, and settings that do nothing."""
    found = ray.get([ray.remote(here).remote(), ray.remote(Actor).remote().here.remote()])
    training.launch(task(tmp_path), Notes(tmp_path), ResourcesConfig())
    assert {text for text, _ in found} | {(tmp_path / "found").read_text()} == {WANTED}
    if LIBC.startswith("glibc") and [*map(int, LIBC.split()[1].split("."))] >= [2, 35]:
        # By default 20 times 9,766 pages.
        assert max(faults for _, faults in found) < 2000


EXISTING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ray.cluster_utils import Cluster
assert "GLIBC_TUNABLES" not in os.environ
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
from mgdm_ray import environment
environment.prepare(local=False)
import ray
from mgdm_ray.runtime import engine
from tests.runtime.test_allocator import here
with engine.cluster(cluster.address):
    print(ray.get(ray.remote(here).remote())[0], flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(not LINUX, reason="/proc and glibc are Linux's")
def test_workers_of_an_existing_cluster_have_them_too() -> None:
    """Would catch settings that reach such workers only after glibc has started."""
    env = {k: v for k, v in os.environ.items() if k not in QUIET and not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", EXISTING, str(ROOT)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == WANTED
