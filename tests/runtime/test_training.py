"""Ray Train itself: one worker and two, a killed one, a loss that is not finite."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.numpy import load_file

from mgdm_ray.config import InputError, ResourcesConfig, StudyConfig
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.diffusion.train import NonFiniteLoss
from mgdm_ray.pipeline.tasks import fit
from mgdm_ray.pipeline.tasks.base import TrainingTask, silent
from mgdm_ray.runtime import engine, training
from tests.conftest import TINY

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.usefixtures("local_ray")


def task(work: Path, **changes: object) -> TrainingTask:
    config = StudyConfig.model_validate(TINY)
    train = config.denoiser.model_copy(update=changes)
    return TrainingTask("k" * 32, train, config.datasets[0], None, 0, "cosine", str(work))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for k, v in load_file(folder / TENSORS_FILE).items() if k.startswith("ema.")}


class DieOnce:
    """A Progress that writes down every step and kills its own worker once, at step 5."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, done: int, *_: object) -> None:
        with (self.folder / "steps").open("a") as file:
            file.write(f"{done}\n")
        if done == 5 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_resumes_and_ends_the_same(tmp_path: Path) -> None:
    """Would catch a checkpoint that forgets something, and training that starts over."""
    calm = fit.train_here(task(tmp_path / "calm"), silent)
    dying = task(tmp_path / "dying")
    ended = training.launch(dying, DieOnce(tmp_path), ResourcesConfig(max_retries=1))
    steps = [int(line) for line in (tmp_path / "steps").read_text().split()]
    assert steps == [1, 2, 3, 4, 5, 4, 5, 6], "the checkpoint was at step 3"
    expected, found = weights(calm), weights(ended)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "resources",
    [
        ResourcesConfig(train_workers=3, cpus_per_worker=0.25, micro_batch=1),
        ResourcesConfig(train_workers=4, cpus_per_worker=0.25, sharding="fsdp"),
    ],
    ids=["3 in parts", "4 sharded"],
)
def test_workers_together_train_what_one_trains(tmp_path: Path, resources: ResourcesConfig) -> None:
    """Would catch workers that draw the same images, gradients that are summed, not averaged,
    shares that count equally though they are not (8 images among 3), and a loss curve that is one
    worker's own."""
    one = fit.train_here(task(tmp_path / "one"), silent)
    several = training.launch(task(tmp_path / "several"), silent, resources)
    for name, value in weights(one).items():
        np.testing.assert_allclose(weights(several)[name], value, atol=2e-4, err_msg=name)
    curves = [json.loads((folder / STATE_FILE).read_text())["history"] for folder in (one, several)]
    ours, theirs = ([row["loss"] for row in curve] for curve in curves)
    assert ours == pytest.approx(theirs, rel=1e-3)


class Hungry:
    """A Progress that runs out of memory on the first worker, ``times`` times."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def __call__(self, done: int, _: int, note: str) -> None:
        if "micro_batch" in note:
            with (self.folder / "said").open("a") as file:
                file.write(f"{note}\n")
        elif done:
            met = len(list(self.folder.glob("met*")))
            if met < self.times:
                (self.folder / f"met{met}").touch()
                raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.long
def test_training_that_is_short_of_memory_takes_smaller_parts(tmp_path: Path) -> None:
    """Would catch training on several GPUs that is given up although half of a share would fit,
    that is retried as it was, that comes to other weights, or that is retried without end."""
    resources = ResourcesConfig(train_workers=2, cpus_per_worker=0.5, max_retries=0)
    ended = training.launch(task(tmp_path / "runs"), Hungry(tmp_path, 2), resources)
    said = (tmp_path / "said").read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in said] == ["2", "1"], "shares of 4 of 8 images"
    assert json.loads((ended / fit.MEMORY_FILE).read_text()) == {"micro_batch": 1}
    expected = weights(fit.train_here(task(tmp_path / "calm"), silent))
    for name, value in weights(ended).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)
    single = resources.model_copy(update={"micro_batch": 1})
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        training.launch(task(tmp_path / "other"), Hungry(tmp_path, 99), single)


def test_a_loss_that_is_not_finite_is_reported_not_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a NaN that is retried, or hidden behind Ray's own error."""
    calls = []

    def explode(*_: object, **__: object) -> None:
        calls.append(1)
        raise NonFiniteLoss(3)

    monkeypatch.setattr(fit, "train_model", explode)
    loop = {"task": task(tmp_path), "progress": silent, "resources": ResourcesConfig()}
    # No worker process: the loop runs here, where the patch is.
    trainer = TorchTrainer(
        training._worker, train_loop_config=loop, scaling_config=ScalingConfig(num_workers=0)
    )
    result = trainer.fit()
    assert result.return_value == {"error": f"NonFiniteLoss: {NonFiniteLoss(3)}"}
    assert calls == [1]


def test_a_job_that_asks_for_too_much_is_refused_before_the_start() -> None:
    """Would catch a study that waits for ever for a GPU that is not there, and one that is refused
    for what it will not do."""
    from mgdm_ray.pipeline.plan import make_plan

    plan = make_plan(StudyConfig.model_validate(TINY), {"phantom-ultrasound": "x"})
    jobs = list(plan.jobs.values())
    cells = plan.cells()
    for place, value, concerned in (
        ("train_workers", 1000, jobs),
        ("gpus_per_worker", 1, jobs),
        ("cpus_per_task", 999, cells),
        ("gpus_per_task", 1, cells),
    ):
        with pytest.raises(InputError, match=rf"^resources\.{place}: .*\d+ [CG]PU"):
            engine.require_resources(concerned, ResourcesConfig.model_validate({place: value}))
    engine.require_resources(cells, ResourcesConfig(train_workers=1000))
    workers = int(ray.cluster_resources()["CPU"])
    engine.require_resources(jobs, ResourcesConfig(train_workers=workers))
