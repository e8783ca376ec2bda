"""The memory that ``--plan`` says a training needs, against what one holds on a fake GPU."""

from __future__ import annotations

import re
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
from mgdm_ray.pipeline import gpu_memory
from mgdm_ray.pipeline.gpu_memory import (
    GPUS,
    Need,
    needs,
    network_bytes,
    rented_gpus,
    sampling_bytes,
    training_bytes,
)
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
        pytest.param("fit_guide", WIDE, 128, "bfloat16", marks=pytest.mark.slow),
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


def needs_of(*overrides: str, rented: dict[str, float] = GPUS) -> dict[str, Need]:
    config, _ = read_study(ROOT / "studies" / "grid.yaml", list(overrides))
    plan = make_plan(config, {d.name: d.name for d in config.datasets})
    return {need.job.kind: need for need in needs(plan.jobs, config.resources, rented)}


CEILINGS = {
    "fit_denoiser": 14.0, "fit_guide": 4.5, "generate": 1.5, "encode": 1.5, "search": 2.5,
    "decode": 1.5, "fit_judge": 1.0, "fit_downstream": 3.5,
}  # fmt: skip
"""GiB of grid.yaml's jobs that may not grow: an L4 has 24 GB, a quarter of it 6."""


def test_grid_fits_its_own_cluster() -> None:
    """Would catch a grid.yaml that runs out of memory on the L4 of gpu.yaml and gcp.yaml."""
    assert rented_gpus() == {"L4": 24.0}
    found = needs_of(rented=rented_gpus())
    assert sorted(found) == sorted(CEILINGS)
    for kind, need in found.items():
        assert 0 < need.bytes / GIB <= CEILINGS[kind], kind
        assert need.refusal is None
        assert {"L4", "A10G", "A100", "L40S", "H100"} <= set(need.gpus)
    assert "T4" in found["fit_guide"].gpus
    assert "T4" not in found["fit_denoiser"].gpus, "without bfloat16 numbers are twice as long"
    assert found["fit_downstream"].job.network == "vgg16_bn"


def test_without_micro_batch_it_fits_an_h100_only() -> None:
    """Would catch an estimate that does not grow with the images, and no value to set."""
    denoiser = needs_of("resources.micro_batch=null")["fit_denoiser"]
    assert denoiser.gpus == ("H100",)
    assert 40 < denoiser.bytes / GIB < 60
    refused = needs_of("resources.micro_batch=null", rented={"L4": 24.0})["fit_denoiser"].refusal
    assert refused is not None
    assert refused[0] == "resources.micro_batch"
    assert refused[1].endswith("set resources.micro_batch: 32")
    on_cpus = "resources.gpus_per_worker=0", "resources.gpus_per_task=0"
    assert needs_of(*on_cpus) == {}


def launch_files(folder: Path, machine: str) -> None:
    """A checkout's launch files in ``folder``, with GPU nodes of one type on AWS only."""
    cluster = ROOT / "cluster"
    folder.mkdir()
    (folder / "instances.yaml").write_text((cluster / "instances.yaml").read_text())
    text = (cluster / "gpu.yaml").read_text()
    (folder / "gpu.yaml").write_text(text.replace("InstanceType: g6.2xlarge", machine))


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("InstanceType: g4dn.xlarge # a T4", {"T4": 16.0}),
        ("InstanceType: p5.48xlarge", {"H100": 80.0}),
        ("InstanceType: m7i.large", GPUS),
        ("# InstanceType: g4dn.xlarge", GPUS),
        ("InstanceType: unknown", GPUS),
    ],
)
def test_gpus_are_those_of_the_machine_types(
    machine: str, expected: dict[str, float], tmp_path: Path
) -> None:
    """Would catch a plan for another machine than the one that is rented."""
    launch_files(tmp_path / "cluster", machine)
    assert rented_gpus(tmp_path / "cluster") == expected
    assert rented_gpus(tmp_path) == GPUS, "a wheel has no launch files"


@pytest.mark.parametrize(
    ("overrides", "key", "job", "value"),
    [
        (["resources.micro_batch=512", "denoiser.batch_size=512"],
         "micro_batch", "fit_denoiser", "resources.micro_batch: 16"),
        (["resources.micro_batch=1"],
         "gpus_per_task", "fit_downstream .* vgg16_bn", "resources.gpus_per_task: 0.5"),
        (["resources.micro_batch=1", "downstream.batch_size=4096"],
         "gpus_per_task", "fit_downstream .* vgg16_bn", "a smaller batch_size or image size"),
    ],
)  # fmt: skip
def test_a_plan_that_fits_no_rented_gpu_is_refused(
    overrides: list[str],
    key: str,
    job: str,
    value: str,
    mgdm: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a job that fails on a rented T4, or on a quarter of it, and a refusal without
    its place and the value to set."""
    launch_files(tmp_path / "cluster", "InstanceType: g4dn.xlarge")
    monkeypatch.setattr(gpu_memory, "CLUSTER", tmp_path / "cluster")
    study = ROOT / "studies" / "grid.yaml"
    given = [word for override in overrides for word in ("--set", override)]
    said = mgdm(study, "--plan", "--storage", tmp_path, *given)
    assert said.code == 2
    line = next(i for i, text in enumerate(study.read_text().splitlines(), 1) if "micro_b" in text)
    place = re.escape(f"grid.yaml:{line}: resources.{key}: ")
    share = "0.25" if key == "gpus_per_task" else "1"
    told = rf"{place}{job}.* GiB .* {share} of .* \(T4, 16 GB\) .*; set {value}"
    assert re.search(told, said.err), said.err


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


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("guided", [False, True])
def test_the_estimate_is_what_sampling_one_image_holds(guided: bool, precision: str) -> None:
    """Would catch a sampler that needs more than is planned for when it is down to one image."""
    unet, size = (SMALL, 64) if precision == "bfloat16" else (UNetConfig(channels=(16, 32, 32)), 32)
    both = {"denoiser": "fit_denoiser", "guide": "fit_guide"}
    models = {role: training(kind, unet, size, "auto", 8) for role, kind in both.items()}
    inputs = {"dataset": {"size": size}, "precision": precision}
    needed = {role: role for role in models if guided or role == "denoiser"}
    estimate = sampling_bytes(Job("decode", "k", inputs, needed, "d"), models, precision)
    steps: Any = {"num_inference_steps": 2, "batch_size": 1, "precision": precision}
    with pytest.MonkeyPatch.context() as patch, fake_gpu() as gpu:
        # Fake tensors cannot be copied deeply.
        patch.setattr("mgdm_ray.diffusion.inference.copy.deepcopy", lambda network: network)
        denoiser, guide = build_denoiser(unet, 3, 4, 0), build_guide(unet, 3, 4, 0)
        trained = TrainedDenoiser(denoiser, DenoiserConfig(unet=unet), SCHEDULE, 4, (3, size, size))
        config, there = SamplingConfig(guidance_scale=1.5, **steps), Execution("cuda")
        made = Sampler(trained, guide if guided else None, config, there)
        if guided:
            setting = GuidanceSetting(measurement="entropy", uncertainty_scale=0.1)
            made.decode(torch.zeros(1, 3, size, size), torch.tensor([1]), range(1), setting)
        else:
            made.generate(torch.tensor([1]), range(1))
        assert 0.9 * gpu.peak <= estimate <= 2 * gpu.peak


CELLS = {
    "alexnet": 0.6, "vgg16_bn": 2.8, "googlenet": 0.8, "resnet18": 0.6, "resnet34": 0.8,
    "resnet50": 1.4, "resnext50_32x4d": 1.7, "densenet121": 1.6, "squeezenet1_1": 0.4,
    "mobilenet_v2": 1.0, "efficientnet_b0": 1.1,
}  # fmt: skip
"""GiB of a training step of grid.yaml's networks and judge (128 px, batch of 64) that may not grow;
a quarter of an L4 has 5.6, of a T4 3.6."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_fits_a_quarter_of_a_card(name: str) -> None:
    """Would catch a network or a loop that needs more of the card that four tasks share, and an
    estimate that is none."""
    images, labels = torch.zeros(64, 3, 128, 128), torch.arange(64) % 7
    with fake_gpu() as gpu:
        network = build_network(name, 7, 3, 128, "a seed").to("cuda")
        # The first step makes the optimiser's moments, which the second one keeps.
        recipe = fit.Recipe(Training(steps=2, batch_size=64), 7, ("a seed",), device="cuda")
        there = as_pixels(images).near("cuda"), labels.to("cuda")
        fit._train(fit._Trained(network, there[0], recipe, None), *there, None)
    assert 0.7 * CELLS[name] < gpu.peak / GIB <= CELLS[name]
    assert network_bytes(name, 128, {"batch_size": 64}, "bfloat16") == pytest.approx(
        gpu.peak, rel=0.05
    )
