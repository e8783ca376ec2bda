"""Training in the job's own process: killed, short of memory, and a loss that is not finite."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.diffusion.train import NonFiniteLoss
from mgdm_ray.pipeline.tasks import fit
from mgdm_ray.pipeline.tasks.base import TrainingTask, silent
from mgdm_ray.runtime.job_task import _train_alone
from tests.conftest import TINY


def task(work: Path) -> TrainingTask:
    """Six steps of 8 images, a checkpoint at step 3."""
    config = StudyConfig.model_validate(TINY)
    return TrainingTask("k" * 32, config.denoiser, config.datasets[0], None, 0, "cosine", str(work))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for k, v in load_file(folder / TENSORS_FILE).items() if k.startswith("ema.")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return weights(fit.train_here(task(tmp_path_factory.mktemp("calm")), silent))


def _until_step_5(work: Path) -> None:
    def kill(done: int, *_: object) -> None:
        if done == 5:
            # As if it died while it wrote the next checkpoint.
            (task(work).work / "new").mkdir()
            (task(work).work / "new" / STATE_FILE).write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)

    fit.train_here(task(work), kill)


def test_a_killed_training_goes_on_and_ends_the_same(
    tmp_path: Path, calm: dict[str, np.ndarray]
) -> None:
    """Would catch a checkpoint that forgets something, one that is read half-written, training that
    starts over, and checkpoints that pile up."""
    child = multiprocessing.get_context("spawn").Process(target=_until_step_5, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    steps: list[int] = []
    final = fit.train_here(task(tmp_path), lambda done, *_: steps.append(done))
    assert steps == [4, 5, 6], "the checkpoint was at step 3"
    for name, value in calm.items():
        np.testing.assert_array_equal(weights(final)[name], value, err_msg=name)
    assert [path.name for path in final.parent.glob("step-*")] == [final.name]
    again = fit.train_here(task(tmp_path), silent)
    assert again == final, "all steps are done"


class Hungry:
    """A Progress that runs out of memory ``times`` times."""

    def __init__(self, times: int) -> None:
        self.left, self.said = times, list[str]()

    def __call__(self, done: int, _: int, note: str) -> None:
        if "micro_batch" in note:
            self.said.append(note.rsplit(" ", 1)[1])
        elif done and self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(("smaller", "parts"), [(False, ["4", "2"]), (True, ["2", "1"])])
def test_short_of_memory_it_takes_smaller_parts(
    tmp_path: Path, calm: dict[str, np.ndarray], parts: list[str], *, smaller: bool
) -> None:
    """Would catch a training that is given up although half a batch would fit, that is retried as
    it was (also after its process was killed for memory), or that comes to other weights."""
    hungry, threads = Hungry(2), torch.get_num_threads()
    final = _train_alone(task(tmp_path), hungry, ResourcesConfig(), smaller=smaller)
    assert hungry.said == parts
    assert json.loads((final / fit.MEMORY_FILE).read_text()) == {"micro_batch": int(parts[-1])}
    for name, value in weights(final).items():
        np.testing.assert_allclose(value, calm[name], atol=2e-4, err_msg=name)
    assert torch.get_num_threads() == threads
    with pytest.raises(MemoryError):
        _train_alone(task(tmp_path / "2"), Hungry(99), ResourcesConfig(), smaller=smaller)


def test_another_error_is_not_tried_in_smaller_parts(tmp_path: Path) -> None:
    """Would catch a loss that is not finite and is taken for a lack of memory."""
    calls: list[int] = []

    def explode(done: int, *_: object) -> None:
        calls.append(done)
        raise NonFiniteLoss(done)

    with pytest.raises(NonFiniteLoss):
        _train_alone(task(tmp_path), explode, ResourcesConfig(), smaller=False)
    assert calls == [1]
