"""Count what a GPU would be asked to do, without a GPU: on fake tensors of device ``cuda``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda")


class Counts(TorchDispatchMode):
    """``copies`` of a CPU tensor to the GPU; ``waits``, in which the CPU waits for the GPU (it
    reads a tensor back); ``casts`` between float types; ``all`` operations on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.waits, self.casts, self.all = 0, 0, 0, 0
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if name == "aten._local_scalar_dense.default":
            self.waits += given[0].device.type == "cuda"
            return 0.5 if given[0].is_floating_point() else 0
        out = function(*args, **kwargs)
        if name in ("aten._to_copy.default", "aten.copy_.default"):
            source = args[1] if name == "aten.copy_.default" else args[0]
            pair = source.device.type, out.device.type
            self.copies += pair == ("cpu", "cuda")
            if pair == ("cuda", "cpu"):
                self.waits += 1
                with torch.utils._python_dispatch._disable_current_modes():
                    return torch.ones(tuple(out.shape), dtype=out.dtype)
            floats = source.is_floating_point() and out.is_floating_point()
            self.casts += pair == ("cuda", "cuda") and floats and source.dtype != out.dtype
        made = out if isinstance(out, tuple | list) else (out,)
        if any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in made):
            self.all += 1
            self.names[name] += 1
        return out


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """``nn.Module.to`` for fake tensors, whose parameters torch cannot exchange in place."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is None:
                    continue
                made = value.detach().to(device, dtype if value.is_floating_point() else None)
                if layout is not None and made.ndim == 4:
                    made = made.contiguous(memory_format=layout)
                if isinstance(value, nn.Parameter):
                    made = nn.Parameter(made, value.requires_grad)
                store[name] = made
    return module


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors are fake and ``cuda`` is a device; every gradient is zero.

    Autograd cannot run there without a GPU.
    """

    def backward(loss: torch.Tensor) -> None:
        waiting, seen = [loss.grad_fn], {None}
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            waiting += [one for one, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.zeros_like(node.variable)

    monkeypatch.setattr(nn.Module, "to", _to)
    # Autocast turns itself off where there is no GPU.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda _y, x, **_: (torch.zeros_like(x),))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def counted(work: Callable[[], object]) -> Counts:
    with Counts() as counts:
        work()
    return counts
