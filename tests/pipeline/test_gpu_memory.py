"""The memory that ``--plan`` says a training needs, against what one holds on a fake GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mgdm_ray.classifiers import fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import (
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    ResourcesConfig,
    SamplingConfig,
    Training,
    UNetConfig,
)
from mgdm_ray.config.file import read_study
from mgdm_ray.data.pixels import as_pixels
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers, forget_activations
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import train_step
from mgdm_ray.diffusion.train_state import new_state
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.pipeline.gpu_memory import GPUS, needs, training_bytes
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from tests.conftest import ROOT, Said
from tests.fake_gpu import GIB, fake_gpu

WIDE = UNetConfig(
    channels=(64, 128, 256, 512), attention=(False, False, True, True), num_res_blocks=2
)
SMALL = UNetConfig(channels=(32, 64, 64), attention=(False, True, True))
GPU = ResourcesConfig(gpus_per_worker=1)
SCHEDULE = make_schedule("cosine")


def training(kind: str, unet: UNetConfig, size: int, precision: str, batch: int) -> Job:
    config: Any = DenoiserConfig if kind == "fit_denoiser" else GuideConfig
    train = config(unet=unet, batch_size=batch, precision=precision).model_dump(mode="json")
    return Job(kind, "k", {"train": train, "dataset": {"size": size}}, {}, "d")


def held(job: Job, lean: bool) -> int:
    """The peak of two steps on a fake GPU, from nothing."""
    kind: Any = DenoiserConfig if job.kind == "fit_denoiser" else GuideConfig
    config, size = kind.model_validate(job.inputs["train"]), job.inputs["dataset"]["size"]
    data = TrainingData(torch.zeros(8, 3, size, size), torch.arange(8) % 4, 4)
    draw = BatchSource(config, data, 0).draw(0)
    with fake_gpu() as gpu:
        state = new_state(config, 3, 4, 0, "cuda")
        if lean:
            forget_activations(state.model)
        there = data.to(torch.device("cuda"))
        for _ in range(2):
            train_step(state, state.model, there, draw, SCHEDULE, Workers(device="cuda"))
        return gpu.peak


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("kind", "unet", "size", "precision"),
    [
        pytest.param("fit_denoiser", WIDE, 128, "bfloat16", marks=pytest.mark.slow),
        ("fit_guide", WIDE, 128, "bfloat16"),
        ("fit_denoiser", SMALL, 64, "float32"),
        ("fit_guide", SMALL, 64, "bfloat16"),
    ],
)
def test_the_estimate_is_what_a_training_holds(
    kind: str, unet: UNetConfig, size: int, precision: str, lean: bool
) -> None:
    """Would catch a network or a loop that keeps more than is planned for. Within a quarter."""
    job = training(kind, unet, size, precision, batch=16)
    resources = GPU.model_copy(update={"activation_checkpointing": lean})
    estimate = training_bytes(job, resources, precision)
    assert held(job, lean) == pytest.approx(estimate, rel=0.25)


def test_the_gpus_are_those_of_the_launch_files() -> None:
    """Would catch a GPU that can be rented and that a plan does not know."""
    text = (ROOT / "cluster" / "instances.yaml").read_text(encoding="utf-8")
    found = {
        machine["gpu"]: machine["gpu_memory"]
        for machines in yaml.safe_load(text).values()
        for machine in machines.values()
        if machine["gpus"]
    }
    assert found == GPUS


def plan_of(*overrides: str) -> tuple[list[Job], ResourcesConfig]:
    config, _ = read_study(ROOT / "studies" / "grid.yaml", list(overrides))
    plan = make_plan(config, {d.name: d.name for d in config.datasets})
    return list(plan.jobs.values()), config.resources


CEILINGS = {"fit_denoiser": 14.0, "fit_guide": 4.5}
"""GiB of grid.yaml's trainings that may not grow: an L4 has 24 GB."""


def test_grid_fits_its_own_cluster() -> None:
    """Would catch a grid.yaml that runs out of memory on the L4 of gpu.yaml and gcp.yaml."""
    found = {need.job.kind: need for need in needs(*plan_of())}
    assert sorted(found) == sorted(CEILINGS)
    for kind, need in found.items():
        assert need.bytes / GIB <= CEILINGS[kind]
        assert {"L4", "A10G", "A100", "L40S", "H100"} <= set(need.gpus)
        assert need.proposal is None
    assert "T4" in found["fit_guide"].gpus
    assert "T4" not in found["fit_denoiser"].gpus, "without bfloat16 numbers are twice as long"


def test_without_micro_batch_it_fits_an_h100_only() -> None:
    """Would catch an estimate that does not grow with the images, and no value to set."""
    denoiser = needs(*plan_of("resources.micro_batch=null"))[0]
    assert denoiser.gpus == ("H100",)
    assert 40 < denoiser.bytes / GIB < 60
    assert denoiser.proposal == 32
    assert needs(*plan_of("resources.gpus_per_worker=0")) == []


def test_a_plan_that_fits_no_gpu_is_refused(mgdm: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a study that fails on the first step of a rented GPU, and a refusal without its
    place and the value to set."""
    study = ROOT / "studies" / "grid.yaml"
    given = (study, "--plan", "--storage", tmp_path, "--set")
    said = mgdm(*given, "resources.micro_batch=512", "--set", "denoiser.batch_size=512")
    assert said.code == 2
    line = next(i for i, text in enumerate(study.read_text().splitlines(), 1) if "micro_" in text)
    assert f"grid.yaml:{line}: resources.micro_batch: fit_denoiser" in said.err
    assert "set resources.micro_batch: 32" in said.err


L4 = 22.5 * GIB
"""What a card of 24 GB shows."""


@pytest.mark.parametrize(
    ("guided", "images"), [(False, 64), pytest.param(True, 32, marks=pytest.mark.slow)]
)
def test_a_quarter_of_an_l4_samples_many_images(guided: bool, images: int) -> None:
    """Would catch a batch of one image again, and one that needs more than the task's part."""
    labels, steps = (
        torch.arange(images) % 4,
        SamplingConfig(num_inference_steps=2, guidance_scale=1.0),
    )
    with fake_gpu(memory=L4) as gpu:
        denoiser, guide = build_denoiser(WIDE, 3, 4, 0), build_guide(WIDE, 3, 4, 0)
        trained = TrainedDenoiser(denoiser, DenoiserConfig(unet=WIDE), SCHEDULE, 4, (3, 128, 128))
        there = Execution("cuda", compile="never", memory_share=0.25)
        made = Sampler(trained, guide if guided else None, steps, there)
        assert made.batch_size >= images
        setting = GuidanceSetting(measurement="entropy", uncertainty_scale=0.1)
        latents = torch.zeros(images, 3, 128, 128)
        made.decode(latents, labels, range(images), setting if guided else None)
        assert gpu.peak <= 0.25 * L4


CELLS = {
    "alexnet": 0.5, "vgg16_bn": 2.4, "googlenet": 0.8, "resnet18": 0.5, "resnet50": 1.3,
    "resnext50_32x4d": 1.6, "densenet121": 1.6, "squeezenet1_1": 0.4, "mobilenet_v2": 1.0,
    "efficientnet_b0": 1.1,
}  # fmt: skip
"""GiB of a training step of grid.yaml's networks (128 px, batch of 64) that may not grow; a quarter
of an L4 has 5.6, of a T4 3.6."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_fits_a_quarter_of_a_card(name: str) -> None:
    """Would catch a network or a loop that needs more of the card that four tasks share."""
    images, labels = torch.zeros(64, 3, 128, 128), torch.arange(64) % 7
    with fake_gpu() as gpu:
        network = build_network(name, 7, 3, 128, "a seed").to("cuda")
        recipe = fit.Recipe(Training(steps=1, batch_size=64), 7, ("a seed",), device="cuda")
        there = as_pixels(images).near("cuda"), labels.to("cuda")
        fit._train(network, *there, recipe, "bfloat16", None)
    assert 0.7 * CELLS[name] < gpu.peak / GIB <= CELLS[name]
