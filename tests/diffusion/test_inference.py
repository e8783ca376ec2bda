"""Layout, precision, compilation and batch size: none of them may change what is computed."""

from __future__ import annotations

import logging
import math
from unittest import mock

import pytest
import torch
from torch import nn

from mgdm_ray.config import SamplingConfig, UNetConfig
from mgdm_ray.diffusion import inference
from mgdm_ray.diffusion.inference import (
    Execution,
    Prepared,
    activation_bytes,
    fitting_batch_size,
    memory_at_hand,
    share_of_gpu,
)
from mgdm_ray.diffusion.live_memory import LivePeak
from mgdm_ray.diffusion.pipeline import Sampler, batch_size_for
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from tests.diffusion.conftest import give_every_weight_influence, sampler
from tests.fake_gpu import GIB, fake_gpu

SCHEDULE = make_schedule("cosine")
SHAPE = (3, 8, 8)
LABELS = torch.tensor([0, 1, 1, 0, 1])
CONFIG = SamplingConfig(num_inference_steps=4, precision="float32", guidance_scale=2.0)


def network(width: int = 16, seed: int = 0) -> nn.Module:
    """A denoiser of two classes in which every weight has an influence."""
    model = build_denoiser(
        UNetConfig(channels=(width, width), attention=(False, True)), 3, 2, "execution", seed
    )
    give_every_weight_influence(model, seed=seed)
    return model


def sampler_of(
    model: nn.Module, config: SamplingConfig = CONFIG, execution: Execution | None = None
) -> Sampler:
    execution = execution or Execution(compile="never")
    return sampler((model, None), config, SCHEDULE, SHAPE, execution=execution)


def images(made: Sampler) -> torch.Tensor:
    return made.generate(LABELS, range(len(LABELS)))


def test_wide_networks_change_their_layout_and_nothing_else() -> None:
    """Catches channels_last that is not applied, or that changes images by more than round-off."""
    plain, wide = network(64), network(64)
    conv = next(m for m in wide.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([5, 900]), torch.tensor([0, 1])
    with torch.no_grad():
        expected = plain.eval()(x, t, class_labels=labels)
        given = Prepared(wide, Execution(precision="float32"))(x, t, class_labels=labels)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    narrow = Prepared(network(16), Execution()).model
    conv = next(m for m in narrow.modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.is_contiguous()


def test_bfloat16_images_are_close_to_float32_ones() -> None:
    """Catches a precision that is ignored, and one that spoils images (PSNR below 30 dB)."""
    model = network(64)
    full = images(sampler_of(model))
    low = images(sampler_of(model, CONFIG.model_copy(update={"precision": "bfloat16"})))
    assert low.dtype == torch.float32
    error = float((low - full).square().mean())
    assert error > 0
    assert 10 * math.log10(2.0**2 / error) > 30


def test_weights_are_cast_once_and_images_stay_the_same() -> None:
    """Would catch a norm in bfloat16, which autocast computes in float32, and a caller's network
    that is rounded for ever."""
    model = network()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([5, 900]), torch.tensor([0, 1])
    prepared = Prepared(model, Execution(precision="bfloat16"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.eval()(x, t, class_labels=labels).float()
    with torch.no_grad():
        assert torch.equal(prepared(x, t, class_labels=labels), expected)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    dtypes = {type(m): m.weight.dtype for m in prepared.modules() if hasattr(m, "weight")}
    assert dtypes[nn.Conv2d] == dtypes[nn.Linear] == torch.bfloat16
    assert dtypes[nn.GroupNorm] == dtypes[nn.Embedding] == torch.float32


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_images(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a compiled graph with other results, and another batch shape sent through it."""
    caplog.set_level(logging.INFO, "mgdm_ray")
    config = CONFIG.model_copy(update={"batch_size": 4})  # 5 images: the last batch has one
    expected = images(sampler_of(network(), config))
    made = sampler_of(network(), config, Execution(compile="always"))
    torch.testing.assert_close(images(made), expected, rtol=0, atol=1e-4)
    compiled = made.denoiser
    assert compiled.compiled is not None
    assert compiled.shape == (8, *SHAPE)  # classifier-free guidance doubles the batch
    assert sum("compiling" in message for message in caplog.messages) == 1


def test_where_compiling_fails_one_line_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a study that dies for want of a C++ compiler."""

    def broken(model: nn.Module, dynamic: bool) -> nn.Module:  # noqa: ARG001
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    config = CONFIG.model_copy(update={"batch_size": 5})
    expected = images(sampler_of(network(), config))
    given = images(sampler_of(network(), config, Execution(compile="always")))
    assert torch.equal(given, expected)
    [said] = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "No working C++ compiler found" in said
    assert "and much more" not in said


@pytest.mark.parametrize(("count", "compiles"), [(0, False), (10**9, True)])
def test_compiling_is_tried_only_where_it_pays(
    count: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches minutes of compiling for seconds of work, and a long job that never compiles."""
    asked = []

    def recorded(model: nn.Module, dynamic: bool) -> nn.Module:  # noqa: ARG001
        asked.append(model)
        return model

    monkeypatch.setattr(torch, "compile", recorded)
    made = sampler_of(network(), execution=Execution())
    made.expect(count)
    images(made)
    assert bool(asked) == compiles


def test_a_batch_that_does_not_fit_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a job that dies of a full GPU, and images lost or doubled on the way."""
    expected = images(sampler_of(network()))

    class Full(nn.Module):
        num_class_embeds = 3

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.most = network(), 4

        def forward(
            self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor
        ) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            predicted: torch.Tensor = self.inner(x, t, class_labels=class_labels)
            return predicted

    torch.testing.assert_close(images(sampler_of(Full())), expected, rtol=0, atol=1e-4)
    assert "batches of 2 images" in caplog.messages[-1]
    too_small = Full()
    too_small.most = 1
    with pytest.raises(torch.OutOfMemoryError):
        images(sampler_of(too_small))


def test_batch_size_follows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a batch that ignores the memory there is, the size of images, or the guide."""
    assert memory_at_hand("cpu") > 10**8
    monkeypatch.setattr(inference, "memory_at_hand", lambda _device: 1000)
    sizes = [fitting_batch_size(need, "cpu", 1.0) for need in (1, 10, 100, 499, 5000)]
    assert sizes == [64, 32, 4, 1, 1]
    assert fitting_batch_size(10, "cpu", 0.25) == 8

    model, label = network(), torch.zeros(1, dtype=torch.int64)
    small, large = (
        activation_bytes(model, torch.zeros(1, 3, n, n), label, graph=False) for n in (32, 64)
    )
    assert 3.5 * small < large < 4.5 * small  # flash attention keeps no matrix
    guide = build_guide(UNetConfig(channels=(16, 16), attention=(False, True)), 3, 2, 0)
    x = torch.zeros(1, 3, 32, 32)
    with_graph = activation_bytes(guide, x, None, graph=True)
    assert with_graph > 3 * activation_bytes(guide, x, None, graph=False)
    monkeypatch.setattr(inference, "memory_at_hand", lambda _device: 100 * large)
    found = [
        batch_size_for(SamplingConfig(guidance_scale=scale), (3, 64, 64), model, None, Execution())
        for scale in (1.0, 1.5)
    ]
    assert found == [32, 16]  # half the memory; two forwards at once
    fixed = SamplingConfig(batch_size=7)
    assert batch_size_for(fixed, (3, 64, 64), model, None, Execution()) == 7


def test_the_live_peak_is_less_than_all_layers_and_true() -> None:
    """Catches a sum over all layers, of which few are alive at once, and a peak that misses some:
    what a forward holds is at least its largest layer's input and output."""
    model, label = network(), torch.zeros(1, dtype=torch.int64)
    x, sizes = torch.zeros(1, 3, 32, 32), []

    def count(_module: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        sizes.append(made.nbytes)
        pairs.append(made.nbytes + given[0].nbytes)

    pairs: list[int] = []
    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    model(x, torch.zeros(1, dtype=torch.int64), class_labels=label)
    for handle in handles:
        handle.remove()
    peak = activation_bytes(model, x, label, graph=False)
    assert max(pairs) <= peak < 0.4 * sum(sizes)
    with LivePeak("cpu") as memory:
        one = torch.zeros(1000)
        two = one.view(10, 100) + 1
        del one
        three = two * 2
        del two
    assert (memory.peak, memory.live) == (8000, 4000)
    assert three.shape == (10, 100)


def test_a_shared_gpu_is_shared() -> None:
    """Catches a task that takes what the three beside it will need, or less than its part."""
    with fake_gpu(memory=10 * GIB) as gpu:
        whole, quarter = share_of_gpu("cuda", 1.0), share_of_gpu("cuda", 0.25)
        assert (whole, quarter) == (10 * GIB - 400 * 2**20, 2.5 * GIB - 400 * 2**20)
        others = torch.zeros(8 * 2**28, device="cuda")  # 8 GiB
        assert share_of_gpu("cuda", 1.0) == 2 * GIB - 400 * 2**20
        with mock.patch.object(torch.cuda, "memory_allocated", return_value=0):
            assert share_of_gpu("cuda", 0.25) == 2 * GIB, "others took more than their part"
        del others
        assert fitting_batch_size(2**20, "cuda", 1.0) == 512
        assert fitting_batch_size(2**30, "cuda", 0.25) == 1
    assert gpu.live == 0
