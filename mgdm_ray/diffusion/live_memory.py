"""The most bytes that tensors of a computation take at the same time, counted while it runs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LivePeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages that are made within, on ``device``: ``live`` bytes now, ``peak`` at most.

    Real or fake tensors. Not the workspaces of kernels, nor the gaps of an allocator.
    """

    def __init__(self, device: str | torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has none
        self.kind = torch.device(device).type
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Those that were there before are not counted when a view of them is made.
        before = {id_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and id_of(value) not in before:
                self.hold(value)
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` until it dies."""
        if tensor.device.type != self.kind:
            return
        storage = tensor.untyped_storage()
        key, size = id_of(tensor), storage.nbytes()
        if key in self.known:
            return

        def dead(_: Any) -> None:
            self.known.pop(key, None)
            self.live -= size

        self.known[key] = weakref.ref(storage, dead)
        self.live += size
        self.peak = max(self.peak, self.live)


def id_of(tensor: Tensor) -> int:
    """The same for all views of one storage, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
