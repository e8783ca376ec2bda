"""Less memory, more workers, other number formats: the same training."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from mgdm_ray.config import DenoiserConfig, UNetConfig
from mgdm_ray.diffusion import train as loop
from mgdm_ray.diffusion import train_state
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.parallel import Workers, exchanging, forget_activations, shard
from mgdm_ray.diffusion.train import Hooks, NonFiniteLoss, train_step
from mgdm_ray.diffusion.train_state import Kind, TrainState, new_state
from tests.chaos.storm import free_port
from tests.diffusion.test_train import CONFIGS, LABELS, SCHEDULE, toy_images, trained

KINDS: tuple[Kind, ...] = get_args(Kind)


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return dict(state.trained.state_dict())


def same(ours: TrainState, theirs: TrainState, atol: float) -> None:
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_a_batch_in_parts_trains_the_same(kind: Kind, most: int) -> None:
    """Would catch parts that are added up without their weights: of 8 images, 3 at a time are
    parts of 2, 3 and 3."""
    whole = trained(CONFIGS[kind])
    parts = trained(CONFIGS[kind], workers=Workers(micro_batch=most))
    same(parts, whole, 2e-5)
    ours, theirs = ([row["loss"] for row in r.history] for r in (parts, whole))
    assert ours == pytest.approx(theirs, rel=1e-4)
    if most >= 8:
        assert ours == theirs, "nothing was cut"


class SmallCard(nn.Module):
    """Has no memory for more than ``most`` images, and runs out of it in one of two places."""

    def __init__(self, model: nn.Module, most: int, backward: bool) -> None:
        super().__init__()
        self.model, self.most, self.backward, self.failed = model, most, backward, 0

    def forward(self, x: torch.Tensor, *args: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        def full(_: object = None) -> None:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

        too_many = len(x) > self.most
        if too_many and not self.backward:
            full()
        made: torch.Tensor = self.model(x, *args, **given)
        if too_many:
            made.register_hook(full)
        return made


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_without_memory_goes_on_in_smaller_parts(
    kind: Kind, backward: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Would catch gradients of a failed attempt that are added to those of the next, a step that is
    left out, a halving at every step, and a resumed training that runs out of memory again."""
    cards: list[SmallCard] = []

    def wrap(model: nn.Module) -> nn.Module:
        cards.append(SmallCard(model, 3, backward))
        return cards[-1]

    state = trained(CONFIGS[kind], workers=Workers(wrap=wrap))
    same(state, trained(CONFIGS[kind], workers=Workers(micro_batch=2)), 0)
    same(state, trained(CONFIGS[kind]), 2e-5)
    assert (state.micro_batch, cards[0].failed) == (2, 2), "8, 4, 2 images at a time"
    warned = [r.getMessage() for r in caplog.records if "out of GPU memory" in r.getMessage()]
    assert len(warned) == 2
    assert "micro_batch 2" in warned[-1]
    state.save(tmp_path)
    again = new_state(CONFIGS[kind], 1, 2, 0)
    again.load(tmp_path)
    assert again.micro_batch == 2


def test_memory_for_no_image_is_an_error() -> None:
    """Would catch a loop without end, and workers that stop waiting for each other."""
    with pytest.raises(torch.OutOfMemoryError):
        trained(CONFIGS["denoiser"], workers=Workers(wrap=lambda m: SmallCard(m, 0, False)))
    one = Workers(0, 2, wrap=lambda m: SmallCard(m, 1, False))
    with pytest.raises(torch.OutOfMemoryError):
        trained(CONFIGS["denoiser"], workers=one)


def test_gradients_are_exchanged_once_per_step() -> None:
    """Would catch an all-reduce for each part, which costs as much as one for the whole."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = 0

        def no_sync(self) -> Counting:
            return self

        def __enter__(self) -> None:
            self.kept += 1

        def __exit__(self, *_: object) -> None:
            pass

    counting = Counting()
    for now in (False, False, True):
        with exchanging(counting, now):
            pass
    assert counting.kept == 2
    with exchanging(nn.Identity(), False):
        pass


def saved_bytes(config: DenoiserConfig, forget: bool) -> int:
    """Of the tensors that autograd keeps for the backward of one step."""
    state = new_state(config, 1, 2, 0)
    if forget:
        forget_activations(state.model)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(8, 1, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state.model(x, torch.full((8,), 5), class_labels=torch.zeros(8, dtype=torch.long))
    return sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_forgotten_activations_change_nothing(kind: Kind) -> None:
    """Would catch a block that is computed otherwise the second time, residual or attention, or
    lost names of weights."""
    attending = CONFIGS[kind].unet.model_copy(update={"attention": (False, True)})
    config = CONFIGS[kind].model_copy(update={"unet": attending})
    plain = trained(config)
    lean = trained(config, workers=Workers(activation_checkpointing=True))
    same(lean, plain, 0)
    assert [row["loss"] for row in lean.history] == [row["loss"] for row in plain.history]


def test_forgotten_activations_take_less_memory() -> None:
    """Would catch checkpointing that is on and saves nothing, in attention blocks above all."""
    unet = UNetConfig(channels=(32, 32), attention=(False, False), num_res_blocks=2)
    config = CONFIGS["denoiser"].model_copy(update={"unet": unet})
    assert saved_bytes(config, True) < 0.6 * saved_bytes(config, False)
    attending = unet.model_copy(update={"attention": (True, True)})
    more = config.model_copy(update={"unet": attending})
    assert saved_bytes(more, True) < 0.5 * saved_bytes(more, False)


HALF = CONFIGS["denoiser"].model_copy(update={"precision": "float16"})


DATA = TrainingData(toy_images(), LABELS, 2)


def step(state: TrainState, forward: nn.Module | None = None) -> float:
    draw = BatchSource(HALF, DATA, 0).draw(state.step)
    return train_step(state, forward or state.model, DATA, draw, SCHEDULE).loss


def test_float16_learns_what_float32_learns() -> None:
    """Would catch gradients that are left scaled, and a norm that is clipped before unscaling."""
    half = trained(HALF)
    full = trained(CONFIGS["denoiser"])
    assert half.precision == "float16"
    assert half.scaler.get_scale() >= 2**15
    ours, theirs = ([row["loss"] for row in r.history] for r in (half, full))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours != theirs


class _Overflow(torch.autograd.Function):
    """The identity, with a gradient that float16 cannot hold under a large scale."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return torch.where(gradient.abs().max() > 1e-3, gradient * math.inf, gradient)


class Overflowing(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = _Overflow.apply(self.model(*args, **kwargs))
        return made


def test_a_step_that_overflows_is_left_out() -> None:
    """Would catch an overflow that stops the training, is averaged into the EMA, or is trained
    on; and one that never ends and goes on for ever."""
    state = new_state(HALF, 1, 2, 0)
    step(state)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    averaged = {name: value.clone() for name, value in weights(state).items()}
    scale = state.scaler.get_scale()
    step(state, Overflowing(state.model))
    assert state.scaler.get_scale() == scale / 2
    assert all(torch.equal(state.model.state_dict()[n], v) for n, v in before.items())
    assert all(torch.equal(weights(state)[n], v) for n, v in averaged.items())
    assert state.step == 2
    step(state)
    assert any(not torch.equal(state.model.state_dict()[n], v) for n, v in before.items())

    class Always(Overflowing):
        def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            return self.model(*args, **kwargs).abs().sqrt()  # infinite slope at 0, at any scale

    fresh = new_state(HALF, 1, 2, 0)

    def until_the_end() -> None:
        for _ in range(60):
            step(fresh, Always(fresh.model))

    with pytest.raises(NonFiniteLoss, match="gradient"):
        until_the_end()


def test_the_scale_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Would catch a resumed training that overflows its way down from the first scale again."""
    state = new_state(HALF, 1, 2, 0)
    step(state, Overflowing(state.model))
    state.save(tmp_path)
    again = new_state(HALF, 1, 2, 0)
    again.load(tmp_path)
    assert again.scaler.get_scale() == state.scaler.get_scale() == 2**15
    full = new_state(CONFIGS["denoiser"], 1, 2, 0)
    full.load(tmp_path)
    assert not full.scaler.is_enabled()


def test_news_bring_a_checkpoint_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a last checkpoint that waits for the regular one, or one after every step."""
    monkeypatch.setattr(loop, "LOOK_EVERY_S", 0.0)
    asked: list[int] = []
    saved: list[int] = []

    def must_stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    hooks = Hooks(on_checkpoint=lambda state: saved.append(state.step), must_stop=must_stop)
    trained(CONFIGS["denoiser"].model_copy(update={"checkpoint_every": 100}), hooks=hooks)
    assert saved == [2, 6], "after the news, and at the end"
    assert len(asked) == 2, "who knows need not ask"


def _train_sharded(rank: int, folder: str, kind: Kind, port: int, resume: bool) -> None:
    """One of two processes; the first one keeps what came of it."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)

    def keep(state: TrainState) -> None:
        tensors = state.tensors()
        if rank == 0:
            state.save(Path(folder) / str(state.step), tensors)

    workers = Workers(rank, 2, micro_batch=2, activation_checkpointing=True, sharded=True)
    checkpoint = Path(folder) / "3" if resume else None
    state = trained(
        CONFIGS[kind], workers=workers, resume=checkpoint, hooks=Hooks(on_checkpoint=keep)
    )
    if rank == 0:
        state.save(Path(folder) / "end")
    torch.distributed.destroy_process_group()


def run_sharded(folder: Path, kind: Kind, *, resume: bool = False) -> None:
    arguments = (str(folder), kind, free_port(), resume)
    torch.multiprocessing.spawn(_train_sharded, arguments, nprocs=2)


def loaded(folder: Path, kind: Kind) -> TrainState:
    state = new_state(CONFIGS[kind], 1, 2, 0)
    state.load(folder)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_weights_train_the_same(kind: Kind, tmp_path: Path) -> None:
    """Would catch shards that are averaged, clipped or saved as if they were the whole, and a
    checkpoint that only as many workers can read."""
    whole = trained(CONFIGS[kind])
    run_sharded(tmp_path, kind)
    for name in ("6", "end"):
        ended = loaded(tmp_path / name, kind)
        same(ended, whole, 1e-4)
        ours, theirs = ([row["loss"] for row in s.history] for s in (ended, whole))
        assert ours == pytest.approx(theirs, rel=1e-3)
    alone = trained(CONFIGS[kind], resume=tmp_path / "3")
    same(alone, whole, 1e-4)
    run_sharded(tmp_path, kind, resume=True)
    same(loaded(tmp_path / "end", kind), whole, 1e-4)


def _train_collected(rank: int, folder: str, port: int) -> None:
    """Training whose sharded weights are collected in bfloat16, as on a GPU."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=1)
    train_state.shard = functools.partial(shard, bfloat16=True)
    config = CONFIGS["guide"].model_copy(update={"precision": "bfloat16"})
    trained(config, workers=Workers(0, 1, sharded=True)).save(Path(folder))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_weights_collected_in_bfloat16_train_alike(tmp_path: Path) -> None:
    """Would catch gradients that are added, or weights that are kept, in bfloat16."""
    torch.multiprocessing.spawn(_train_collected, (str(tmp_path), free_port()), nprocs=1)
    ended, whole = loaded(tmp_path, "guide"), trained(CONFIGS["guide"])
    ours, theirs = ([row["loss"] for row in s.history] for s in (ended, whole))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours != theirs
    kept = next(ended.model.parameters())
    assert not torch.equal(kept, kept.bfloat16().float())
