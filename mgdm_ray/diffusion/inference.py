"""How a network runs: layout, precision, compilation, batch size. Changes round-off and speed
only."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn

from mgdm_ray.diffusion.live_memory import LivePeak
from mgdm_ray.precision import autocast, sampling_precision

log = logging.getLogger(__name__)

Compile = Literal["auto", "never", "always"]

COMPILE_PAYS_AFTER = 3600.0
"""Seconds of uncompiled work ahead from which ``auto`` compiles: a UNet of 4 to 5 M parameters took
66 to 130 s on two AVX2 cores and became 1.04 to 1.23 times faster.
"""
TIMED = 3
"""Forwards that ``auto`` times, and on a GPU waits for; the first is slower than the rest."""
NHWC_FROM_CHANNELS = 64
"""First-level width from which channels_last is faster on a CPU: narrower ones lose in group
norm."""
ON_GPU = 0.9
"""Share of a GPU's memory for tensors; the rest is for workspaces of kernels and gaps. A batch that
does not fit is halved."""
CUDA_CONTEXT = 400 * 2**20
"""Bytes that CUDA takes in each process."""
LARGEST_BATCH = {"cpu": 64, "cuda": 512}
"""Larger batches gain nothing."""


@dataclass(frozen=True)
class Execution:
    """Where and how a network runs."""

    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Compile = "auto"
    memory_share: float = 1.0
    """Share of the free memory that this job may use."""


class Prepared(nn.Module):
    """A network in eval mode with frozen parameters, in its fastest form; float32 outputs.

    ``calls`` is how many forwards are to come: ``compile="auto"`` compiles once the first ones show
    that it pays, for one shape of batch. Where compiling fails, one line in the log says why.
    ``backward``: gradients with respect to its input will be asked for.
    """

    def __init__(
        self, model: nn.Module, execution: Execution, calls: int = 0, *, backward: bool = False
    ) -> None:
        super().__init__()
        device = torch.device(execution.device)
        self.precision = sampling_precision(execution.precision, device, backward=backward)
        if self.precision != "float32":
            model = with_low_weights(model, getattr(torch, self.precision))
        self.model = freeze(model, device, backward=backward)
        self.execution, self.calls = execution, calls
        self.num_class_embeds = getattr(model, "num_class_embeds", None)
        self.compiled: Any = None
        self.shape: torch.Size | None = None
        self.seen: list[float] = []

    @property
    def member_masks(self) -> Tensor | None:
        """The guide's dropout masks, if it has any."""
        masks: Tensor | None = getattr(self.model, "member_masks", None)
        return masks

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        masks: Tensor | None = None,
        *,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        given = {"masks": masks, "class_labels": class_labels}
        conditions = {name: value for name, value in given.items() if value is not None}
        with autocast(self.precision, x_t.device):
            if self.compiled is None and self._pays():
                return self._first_compiled(x_t, t, conditions)
            if self.compiled is not None and x_t.shape == self.shape:
                return _float(self.compiled(x_t, t, **conditions))
            started = time.perf_counter()
            output = _float(self.model(x_t, t, **conditions))
        if self.execution.compile == "auto" and len(self.seen) < TIMED:
            if x_t.is_cuda:
                torch.cuda.synchronize(x_t.device)
            self.seen.append(time.perf_counter() - started)
        self.calls -= 1
        return output

    def _pays(self) -> bool:
        if self.execution.compile != "auto":
            return self.execution.compile == "always"
        if len(self.seen) < TIMED:
            return False
        return self.calls * min(self.seen[1:]) > COMPILE_PAYS_AFTER

    def _first_compiled(self, x_t: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        log.info("compiling a network for batches of %s: takes minutes", tuple(x_t.shape))
        try:
            compiled = torch.compile(self.model, dynamic=False)
            output = _float(compiled(x_t, t, **conditions))
            self.compiled, self.shape = compiled, x_t.shape
            return output
        except torch.OutOfMemoryError:  # a smaller batch may do
            raise
        except Exception as error:  # noqa: BLE001 - a compiler fails in many ways
            lines = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("torch.compile does not work here (%s); running without", lines[0][:200])
            self.execution = replace(self.execution, compile="never")
            return _float(self.model(x_t, t, **conditions))


def with_low_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with the weights that autocast would cast to ``dtype`` in every forward.

    Norms and embeddings, which autocast leaves alone, stay float32; outputs are bit-equal.
    """
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    return model


def _float(output: Tensor) -> Tensor:
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def freeze(model: nn.Module, device: str | torch.device, *, backward: bool = False) -> nn.Module:
    """``model`` itself: eval mode, parameters without gradients, its fastest layout, ``device``."""
    model.to(device).eval().requires_grad_(False)
    return in_layout(model, device, backward=backward)


def in_layout(model: nn.Module, device: str | torch.device, *, backward: bool = False) -> nn.Module:
    """``model`` itself, in channels_last where that is faster. Images may come in any layout."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    width = convolutions[0].out_channels if convolutions else 0
    # On a CPU the backward pass of group norm loses what the convolutions gain (docs/adr/0011).
    pays = width >= NHWC_FROM_CHANNELS and not backward
    if torch.device(device).type == "cuda" or pays:
        return model.to(memory_format=torch.channels_last)
    return model


def fitting_batch_size(bytes_per_image: int, device: str | torch.device, share: float) -> int:
    """The largest power of two of images that fit into memory, from 1 to LARGEST_BATCH."""
    kind = torch.device(device).type
    if kind == "cuda":
        free: float = ON_GPU * share_of_gpu(device, share)
    else:
        free = share * memory_at_hand(device) / 2
    most = min(LARGEST_BATCH.get(kind, 64), int(free // max(1, bytes_per_image)))
    return 1 << (max(1, most).bit_length() - 1)


def share_of_gpu(device: str | torch.device, share: float) -> float:
    """Bytes that this process may still take of the GPU that it has a ``share`` of.

    Other processes may not have taken theirs yet, or have taken more.
    """
    free, total = torch.cuda.mem_get_info(device)
    mine = share * total - CUDA_CONTEXT - torch.cuda.memory_allocated(device)
    return max(0.0, min(mine, free))


def memory_at_hand(device: str | torch.device) -> int:
    """Free bytes: of the GPU, or of this machine within the container's limit."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def activation_bytes(model: nn.Module, x_t: Tensor, labels: Tensor | None, *, graph: bool) -> int:
    """The most bytes alive at once in a forward of one image `[1, C, H, W]`, beside the weights.

    With ``graph`` also what the gradient with respect to the image keeps and makes.
    """
    inner, precision = model, "float32"
    if isinstance(model, Prepared):  # whose own forward counts calls and times them
        inner, precision = model.model, model.precision
    conditions = {} if labels is None else {"class_labels": labels}
    t = torch.zeros(1, dtype=torch.int64, device=x_t.device)
    x_t = x_t.detach().requires_grad_(graph)
    with LivePeak(x_t.device) as memory, torch.set_grad_enabled(graph):
        with autocast(precision, x_t.device):
            made = inner(x_t, t, **conditions)
        if graph:
            made = torch.autograd.grad(made.float().sum(), x_t)
        del made
    return int(memory.peak)
