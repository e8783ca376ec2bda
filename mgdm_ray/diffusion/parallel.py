"""How the batches of training are shared among workers and fitted into memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from mgdm_ray.diffusion.monai_networks import DiffusionUNetResnetBlock, SpatialAttentionBlock

BLOCKS = (DiffusionUNetResnetBlock, SpatialAttentionBlock)
"""The parts of a UNet that are sharded, and computed again, one by one."""


@dataclass(frozen=True)
class Workers:
    """Which one of the workers this process is, and how it computes."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    micro_batch: int | None = None
    """Most images at a time; the gradients of the parts are added up."""
    activation_checkpointing: bool = False
    """Recompute the activations of residual and attention blocks in the backward pass."""
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """DDP; only its averaging of gradients is relied on."""
    sharded: bool = False
    """Each worker holds only its part of the weights (FSDP2); instead of ``wrap``."""
    compile: bool = False
    """Compile forward and backward, once for each size of a part; not with ``sharded``."""


ALONE = Workers()


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum over all workers, in place; a GPU need not have ended."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


@contextlib.contextmanager
def exchanging(forward: nn.Module, now: bool) -> Iterator[None]:
    """Average gradients over the workers in backward only if ``now``.

    Must hold the forward too: DDP decides there.
    """
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(now)
        yield
        return
    no_sync = getattr(forward, "no_sync", None)
    with contextlib.nullcontext() if now or no_sync is None else no_sync():
        yield


def shard(model: nn.Module, *, bfloat16: bool = False) -> None:
    """Cut the weights among all workers, in place: block by block, then the rest.

    They are DTensors from then on. ``bfloat16``: collected as such for forward and backward, half
    the bytes, while each worker keeps its part, and adds gradients, in float32.
    """
    policy = MixedPrecisionPolicy()
    if bfloat16:  # inputs are cast by autocast
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.modules():
        if isinstance(block, BLOCKS):
            fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def sharded_like(weight: Tensor, value: Tensor) -> Tensor:
    """``value``, a whole tensor on every worker, cut as ``weight`` is."""
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def whole(value: Tensor) -> Tensor:
    """The whole of a sharded tensor, which all workers must call; other tensors unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This worker's part of a sharded tensor; other tensors unchanged."""
    return value.to_local() if isinstance(value, DTensor) else value


def compiled(model: nn.Module) -> nn.Module:
    """``model`` with a compiled forward, as it is where the compiler fails; the same weights."""
    from torch import _dynamo  # 1.5 CPU seconds

    _dynamo.config.suppress_errors = True
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def forget_activations(model: nn.Module) -> None:
    """Turn activation checkpointing on in every residual and attention block, in place."""
    for block in model.modules():
        if isinstance(block, BLOCKS):
            again = functools.partial(checkpoint, block.forward, use_reentrant=False)
            vars(block)["forward"] = again
