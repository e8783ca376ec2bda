"""A GPU that computes nothing: what a card would hold, copy and wait for, without one.

Under ``FakeTensorMode`` tensors have a shape, a type and a device, and no content. ``fake_gpu``
adds what runs on a GPU and not there: attention by the fused kernels, a backward pass (torch's
engine asks the driver for its devices), and answers for ``.item()``. It counts what is alive on the
card, and what makes the host and the card wait for each other. What it leaves out: the workspaces
of kernels (cuDNN's convolutions above all) and the allocator's gaps.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # FakeTensorMode imports it, which fails once torch.cuda is patched
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from mgdm_ray.diffusion.live_memory import LivePeak

ATEN = torch.ops.aten
GIB = 2**30
COPIES = {ATEN._to_copy.default, ATEN.copy_.default, ATEN._copy_from.default}
WAITS = {
    ATEN._local_scalar_dense.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.equal.default,
}
"""Operations whose result the host reads, or whose size it must know."""


class FakeGpu(LivePeak):
    """Counts, under a ``FakeTensorMode``, what happens on the one card that there is.

    ``live`` and ``peak`` are bytes of the storages on it. ``counts``: ``to device`` and ``to host``
    are copies between the two, ``waits`` the times that the host waits for a result
    (``.item()``, ``bool()``, sizes that depend on content), ``casts`` copies on the card from one
    float type to another. ``calls`` counts all operations on the card by name.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__(device)
        self.counts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if self.kind == "cuda" and given and _is_real(given, kwargs):
            with unset_fake_temporarily():  # made before, on the CPU: it has content
                return func(*args, **kwargs)
        on_card = [self.has(x) for x in given]
        if func in WAITS and any(on_card):
            self.counts["waits"] += 1
        if func is ATEN._local_scalar_dense.default:
            return nothing(args[0].dtype)
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        asks = func is torch.ops.prim.device.default
        if not asks and (any(on_card) or any(map(self.has, made))):
            self.calls[func.overloadpacket.__name__] += 1
        self._count_copies(func, args, made)
        for tensor in made:
            self.hold(tensor)
        return result

    def _count_copies(self, func: Any, args: tuple[Any, ...], made: Sequence[Tensor]) -> None:
        if func in COPIES:
            source = args[1] if func is ATEN.copy_.default else args[0]
            pair = self.has(source), self.has(made[0])
            if pair[0] != pair[1]:
                self.counts["to device" if pair[1] else "to host"] += 1
            elif all(pair) and source.is_floating_point() and made[0].is_floating_point():
                self.counts["casts"] += source.dtype != made[0].dtype
        elif func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default):
            for index in args[1]:
                if index is not None and self.has(args[0]):
                    self.counts["to device"] += not self.has(index)
                    self.counts["waits"] += index.dtype in (torch.bool, torch.uint8)

    def has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self.kind

    @contextlib.contextmanager
    def measured(self) -> Iterator[Measured]:
        """What happens within: ``counts``, and the most bytes more than were alive before."""
        before, counts, calls, peak = self.live, self.counts, self.calls, self.peak
        self.counts, self.calls, self.peak = Counter(), Counter(), self.live
        found = Measured()
        try:
            yield found
        finally:
            found.counts, found.calls = +self.counts, +self.calls
            found.peak, found.left = self.peak - before, self.live - before
            self.counts, self.calls = counts + self.counts, calls + self.calls
            self.peak = max(peak, self.peak)


def _is_real(given: Sequence[Tensor], options: dict[str, Any]) -> bool:
    """Whether all tensors have content, and stay on the CPU."""
    stays = torch.device(options.get("device") or "cpu").type == "cpu"
    return stays and not any(isinstance(x, FakeTensor) for x in given)


class Measured:
    """What ``FakeGpu.measured`` found: bytes above those alive before, and counts."""

    counts: Counter[str]
    calls: Counter[str]
    peak: int
    left: int


def nothing(dtype: torch.dtype) -> float | int | bool:
    """What ``.item()`` says of a tensor without content: zero, which is finite and not true."""
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0


IGNORED = ("_lazy_init", "get_rng_state", "set_rng_state", "manual_seed", "empty_cache")
"""Functions of ``torch.cuda`` that do nothing here."""


@contextlib.contextmanager
def fake_gpu(*, memory: float = 24 * GIB, bfloat16: bool = True) -> Iterator[FakeGpu]:
    """One card with ``memory`` bytes, for tensors and networks that are made within.

    ``bfloat16=False`` is a card without it (T4).
    """
    gpu = FakeGpu()

    def free(_device: Any = None) -> tuple[int, int]:
        return int(memory - gpu.live), int(memory)

    def fused(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, **options: Any
    ) -> Tensor:
        assert attn_mask is None
        return attention(query, key, value, options.get("scale"))

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], **_: bool) -> nn.Module:
        return moved(self, fn)

    def ignored(*_: Any, **__: Any) -> None:
        pass

    cuda = torch.cuda
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (FakeTensorMode, "avoid_device_init", True),  # also where there is a card
            (cuda, "is_available", lambda: True),
            (cuda, "device_count", lambda: 1),
            (cuda, "current_device", lambda: 0),
            *((cuda, name, ignored) for name in IGNORED),
            (cuda, "device", contextlib.nullcontext),
            (cuda, "mem_get_info", free),
            (cuda, "memory_allocated", lambda _=None: gpu.live),
            (cuda, "is_bf16_supported", lambda **_: bfloat16),
            (cuda, "synchronize", lambda *_: gpu.counts.update(["waits"])),
            (torch.nn.functional, "scaled_dot_product_attention", fused),
            (torch.autograd, "backward", backward),
            (Tensor, "backward", lambda tensor, gradient=None: backward(tensor, gradient)),
            (torch.autograd, "grad", grad),
            (nn.Module, "_apply", apply),
            (torch._C, "_current_graph_task_id", lambda: 1),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """The fused kernel that a GPU would take; fake tensors alone would make the whole matrix."""
    if q.dtype in (torch.bfloat16, torch.float16):
        made: Tensor = ATEN._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
        return made
    needs_sums = any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled()
    return ATEN._scaled_dot_product_efficient_attention(q, k, v, None, needs_sums, scale=scale)[0]


def moved(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> nn.Module:
    """``module`` with ``fn`` of all that it holds: torch's own needs real storages to swap."""
    for child in module.children():
        moved(child, fn)
    with torch.no_grad():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                changed = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = changed
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else fn(buffer)
    return module


# --- backward -----------------------------------------------------------------------------------


def backward(tensors: Any, grad_tensors: Any = None, **_: Any) -> None:
    """``torch.autograd.backward``, node by node: its engine wants a device."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    del tensors
    given = [grad_tensors] if isinstance(grad_tensors, Tensor) or not grad_tensors else grad_tensors
    starts = []
    while roots:
        tensor = roots.pop(0)
        seed = given[len(starts)] if given[0] is not None else torch.ones_like(tensor)
        starts.append((tensor.grad_fn, tensor.output_nr, seed))
        del tensor
    _walk(starts, {})


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **_: Any) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` of tensors that are leaves or made by an operation."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    seeds = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs
    seeds = list(seeds or [torch.ones_like(x) for x in outputs])
    wanted: dict[Any, Tensor | None] = {_edge(x): None for x in inputs}
    starts = [(x.grad_fn, x.output_nr, g) for x, g in zip(outputs, seeds, strict=True)]
    _walk(starts, wanted)
    return tuple(wanted[_edge(x)] for x in inputs)  # type: ignore[misc]


def _edge(tensor: Tensor) -> Any:
    return id(tensor) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def _walk(starts: list[tuple[Any, int, Tensor]], wanted: dict[Any, Tensor | None]) -> None:
    """Call each node of the graph once all gradients that reach it are there, and let it go.

    ``wanted`` receives gradients instead of ``.grad``: by the id of a leaf or the edge of another.
    """
    waiting: Counter[Any] = Counter()
    todo, seen = [start[0] for start in starts], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                todo.append(following)
    del seen, todo
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for node, number, gradient in starts:
        arrived[node][number] = gradient
    ready = [node for node in arrived if not waiting[node]]
    starts.clear()
    node = gradient = None  # type: ignore[assignment]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            gradients = arrived.pop(node, {})
            waiting.pop(node, None)
            for number, gradient in gradients.items():
                if (node, number) in wanted:
                    wanted[node, number] = gradient
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                _keep(leaf, gradients.get(0), wanted)
            made = () if leaf is not None else _called(node, gradients)
            edges = node.next_functions
            node = leaf = gradients = gradient = None  # type: ignore[assignment]
            for (following, number), value in zip(edges, made, strict=False):
                if following is None:
                    continue
                if value is not None:
                    value = _fitted(value, following, number)
                    old = arrived[following].get(number)
                    arrived[following][number] = value if old is None else old + value
                    old = None
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)
            edges = made = value = following = None  # type: ignore[assignment]


def _called(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    if not gradients:
        return (None,) * len(node.next_functions)
    many = len(node._input_metadata)
    with torch.enable_grad() if hasattr(node, "_forward_cls") else contextlib.nullcontext():
        made = node(*[gradients.get(i) for i in range(many)])
    return made if isinstance(made, tuple) else (made,)


def _fitted(gradient: Tensor, node: Any, number: int) -> Tensor:
    """``gradient`` in the shape and type that ``node`` expects, as the engine makes it."""
    wanted = node._input_metadata[number]
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient if gradient.dtype == wanted.dtype else gradient.to(wanted.dtype)


def _keep(leaf: Tensor, gradient: Tensor | None, wanted: dict[Any, Tensor | None]) -> None:
    if gradient is None:
        return
    if wanted:
        if id(leaf) in wanted:
            wanted[id(leaf)] = gradient
        return
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
