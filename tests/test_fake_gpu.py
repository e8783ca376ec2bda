"""Everything that runs on a GPU, on one that computes nothing: places of tensors, and memory.

Copies and waits per step: ``tests/diffusion/test_gpu_counts.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from mgdm_ray.classifiers import fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import (
    NETWORKS,
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    SamplingConfig,
    Training,
    UNetConfig,
)
from mgdm_ray.data.pixels import as_pixels
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers, forget_activations
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import train_step
from mgdm_ray.diffusion.train_state import Kind, new_state
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from tests import fake_gpu as fake
from tests.fake_gpu import FakeGpu, Measured, fake_gpu

SMALL = UNetConfig(channels=(32, 64), attention=(False, True))
SHAPE = (3, 32, 32)
SCHEDULE = make_schedule("cosine")
CONFIGS: dict[Kind, DenoiserConfig | GuideConfig] = {
    "denoiser": DenoiserConfig(unet=SMALL, batch_size=8),
    "guide": GuideConfig(unet=SMALL, batch_size=8),
}
DATA = TrainingData(torch.zeros(12, *SHAPE), torch.arange(12) % 4, 4)
LABELS = torch.tensor([0, 1, 2, 3])
SETTING = GuidanceSetting(measurement="entropy", uncertainty_scale=0.1)
QUICK = ("alexnet", "resnet18", "squeezenet1_1")
"""Networks of `make test`; `make test-rest` has the others."""


# --- the harness itself -------------------------------------------------------------------------


def network_and_input(kind: str) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    if kind == "denoiser":
        model = build_denoiser(SMALL, 3, 4, 0)
        labels = {"class_labels": torch.tensor([0, 1])}
    else:
        model, labels = build_guide(SMALL, 3, 4, 0), {}
    x, t = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    return model, lambda: model(x, t, **labels).square().mean()


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_backward_of_the_harness_is_torchs(kind: str, forget: bool) -> None:
    """Would catch gradients that it adds up wrongly or keeps for longer: both engines on the CPU,
    where both run, give the same gradients and hold as much at the most."""
    found = []
    for walk in (False, True):
        model, loss = network_and_input(kind)
        if forget:
            forget_activations(model)
        with FakeGpu("cpu") as counting, counting.measured() as memory:
            if walk:
                with mock.patch.object(torch._C, "_current_graph_task_id", return_value=1):
                    fake.backward(loss())
            else:
                loss().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None for g in gradients.values())
        found.append((gradients, memory.peak))
    (theirs, their_peak), (ours, our_peak) = found
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert our_peak == pytest.approx(their_peak, rel=0.05)


def test_gradients_of_inputs_are_torchs() -> None:
    """Would catch a guidance that is counted along another way than it takes."""
    model, _ = network_and_input("guide")
    model.requires_grad_(False)
    x = torch.randn(2, *SHAPE, requires_grad=True)
    out = model(x, torch.tensor([1, 2]))
    (ours,) = fake.grad(out.sum(), x)
    out = model(x, torch.tensor([1, 2]))
    (theirs,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_the_harness_counts_what_happens() -> None:
    """Would catch counts that stay at zero whatever the code does."""
    on_cpu = torch.arange(4)
    with fake_gpu() as gpu:
        with gpu.measured() as first:
            x = on_cpu.to("cuda")
            y = x.float() * 2
            assert float(y.sum()) == 0
            assert not bool((y > 0).any())
            y.cpu()
            y[on_cpu]
        assert first.counts == {"to device": 2, "to host": 1, "waits": 2}
        assert first.left == 4 * 8 + 4 * 4, "x and y"
        with gpu.measured() as third:
            y.half().float().int()
        assert third.counts == {"casts": 2}
        with gpu.measured() as second:
            z = torch.zeros(2**20, device="cuda")
            z = z + 1
            del z
        assert (second.peak, second.left) == (8 * 2**20, 0)
        with pytest.raises(RuntimeError, match="same device"):
            _ = y + torch.zeros(4)


# --- training -----------------------------------------------------------------------------------


def training_step(config: DenoiserConfig | GuideConfig, workers: Workers) -> Measured:
    """The second step of a training on a card: the first also makes the optimiser's moments."""
    draw = BatchSource(config, DATA, 0).draw(0)
    with fake_gpu() as gpu:
        state, data = new_state(config, SHAPE[0], 4, 0, "cuda"), DATA.to(torch.device("cuda"))
        if workers.activation_checkpointing:
            forget_activations(state.model)
        for _ in range(2):
            with gpu.measured() as found:
                train_step(state, state.model, data, draw, SCHEDULE, workers)
        assert all(p.grad is not None for p in state.model.parameters())
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_training_step_runs_on_a_card(kind: Kind) -> None:
    """Would catch a tensor left on the CPU, and memory that grows from step to step."""
    found = training_step(CONFIGS[kind], Workers(device="cuda"))
    assert found.peak > 0
    assert found.left == 0


@pytest.mark.parametrize("kind", [pytest.param("denoiser", marks=pytest.mark.slow), "guide"])
def test_parts_and_forgotten_activations_take_less_memory(kind: Kind) -> None:
    """Would catch a micro batch or a checkpointing that saves nothing."""
    whole = training_step(CONFIGS[kind], Workers(device="cuda")).peak
    parts = training_step(CONFIGS[kind], Workers(device="cuda", micro_batch=2)).peak
    lean = training_step(CONFIGS[kind], Workers(device="cuda", activation_checkpointing=True)).peak
    assert parts < 0.6 * whole
    assert lean < 0.7 * whole


# --- sampling -----------------------------------------------------------------------------------


def sampler_on(config: SamplingConfig) -> Sampler:
    trained = TrainedDenoiser(
        build_denoiser(SMALL, 3, 4, 0), DenoiserConfig(unet=SMALL), SCHEDULE, 4, SHAPE
    )
    return Sampler(trained, build_guide(SMALL, 3, 4, 0), config, Execution("cuda", compile="never"))


STAGES: dict[str, Callable[[Sampler, torch.Tensor], Any]] = {
    "generate": lambda s, _: s.generate(LABELS, range(4)),
    "encode": lambda s, x: s.encode(x, LABELS, range(4)),
    "decode": lambda s, x: s.decode(x, LABELS, range(4), None),
    "guided": lambda s, x: s.decode(x, LABELS, range(4), SETTING),
    "random": lambda s, x: s.decode(x, LABELS, range(4), SETTING, random=True),
    "strengths": lambda s, x: s.decode(x, LABELS, range(4), SETTING, strengths=torch.ones(4)),
}


@pytest.mark.parametrize(
    ("stage", "solver", "classifier_scale"),
    [*((stage, "second_order", 0.0) for stage in STAGES), ("generate", "ddim", 1.0)],
)
def test_sampling_runs_on_a_card(stage: str, solver: str, classifier_scale: float) -> None:
    """Would catch noise, labels, strengths or tables on the CPU, and images that stay."""
    config = SamplingConfig(
        num_inference_steps=2, solver=solver, guidance_scale=1.5, inversion_iterations=1,
        classifier_scale=classifier_scale,
    )  # fmt: skip
    with fake_gpu() as gpu:
        made = sampler_on(config)
        assert made.batch_size == 512, "24 GiB hold more small images than are useful"
        with gpu.measured() as found:
            images = STAGES[stage](made, torch.zeros(4, *SHAPE))
        assert images.shape == (4, *SHAPE)
        assert images.device.type == "cpu"
        assert found.left == 0


# --- the ten networks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS]
)
def test_the_ten_networks_train_on_a_card(name: str) -> None:
    """Would catch a stem or a head on the CPU, and a step that stops for the host more often."""
    config = Training(steps=1, batch_size=8)
    images, labels = torch.zeros(16, 3, 32, 32), torch.arange(16) % 4
    with fake_gpu() as gpu:
        network = build_network(name, 4, 3, 32, "a seed").to("cuda")
        recipe = fit.Recipe(config, 4, ("a seed",), device="cuda")
        with gpu.measured() as found:
            there = as_pixels(images).near("cuda"), labels.to("cuda")
            history = fit._train(fit._Trained(network, there[0], recipe, None), *there, None)
    assert [row["step"] for row in history] == [1]
    assert found.counts["waits"] <= 1
    assert found.counts["to device"] <= 4, "images and labels once, and each step's rows"
