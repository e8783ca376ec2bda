"""Training with a compiled model: the same training, whose checkpoints are the same files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import _dynamo
from torch.nn.parallel import DistributedDataParallel

from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.train import Hooks
from mgdm_ray.diffusion.train_state import Kind
from tests.chaos.storm import free_port
from tests.diffusion.test_parallel import same
from tests.diffusion.test_train import CONFIGS, trained

KINDS: tuple[Kind, ...] = get_args(Kind)
COMPILED = Workers(compile=True)
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graph of another test, and errors are raised again afterwards."""
    _dynamo.reset()
    yield
    _dynamo.reset()
    _dynamo.config.suppress_errors = False


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs are traced, with their backward, and run as they are: seconds instead of minutes.

    The number of operations of each.
    """
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return _dynamo.backends.debugging.aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return graphs


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_training_is_the_same(kind: Kind, traced: list[int], tmp_path: Path) -> None:
    """Would catch weights that are trained twice or not at all, names that only a compiled model
    can read, and parts of 2 and 3 images that meet one graph."""

    def keep(state: Any) -> None:
        state.save(tmp_path / f"{state.step}", state.tensors())

    plain = trained(CONFIGS[kind])
    hooks = Hooks(on_checkpoint=keep)
    ours = trained(CONFIGS[kind], workers=Workers(compile=True, micro_batch=3), hooks=hooks)
    assert max(traced) > 50, "hardly anything was compiled"
    same(ours, plain, 2e-5)
    same(trained(CONFIGS[kind], resume=tmp_path / "3"), plain, 2e-5)
    same(trained(CONFIGS[kind], workers=COMPILED, resume=tmp_path / "3"), plain, 2e-5)


def test_a_compiled_training_on_several_workers(traced: list[int]) -> None:
    """Would catch a compiled model that DDP does not average, or whose parts it exchanges one by
    one."""
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        workers = Workers(compile=True, micro_batch=3, wrap=DistributedDataParallel)
        ours = trained(CONFIGS["denoiser"], workers=workers)
    finally:
        torch.distributed.destroy_process_group()
    assert traced
    same(ours, trained(CONFIGS["denoiser"]), 2e-5)


def test_a_compiler_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a training that fails for lack of a compiler, or goes on without a word."""

    def broken(graph: torch.fx.GraphModule, inputs: Any) -> Any:  # noqa: ARG001
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with caplog.at_level(logging.WARNING):
        ours = trained(CONFIGS["guide"], workers=COMPILED)
    same(ours, trained(CONFIGS["guide"]), 0)
    assert "no compiler here" in caplog.text


@pytest.mark.long
def test_what_the_compiler_makes_trains_the_same() -> None:
    """Would catch a forward or backward that torch's own compiler gets wrong for this model."""
    ours, plain = trained(CONFIGS["denoiser"], workers=COMPILED), trained(CONFIGS["denoiser"])
    same(ours, plain, 1e-4)
    ours_loss, theirs = ([row["loss"] for row in r.history] for r in (ours, plain))
    assert ours_loss == pytest.approx(theirs, rel=1e-4)
