"""The precision that a network computes in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import nn

from mgdm_ray.environment import cores


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast to what ``precision`` means on ``device``; nothing for float32."""
    resolved = resolved_precision(precision, device)
    if resolved == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, resolved))


def resolved_precision(precision: str, device: torch.device) -> str:
    """``bfloat16``, ``float16`` or ``float32``: what ``precision`` means on ``device``."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return precision


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32's on ``device``.

    On CPUs with AMX, or AMD's AVX512_BF16. Intel's without AMX multiplied at 168 Gflop/s in
    bfloat16 and at 334 in float32; AMD's (Zen 5) convolved at 1000 and at 500.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Absent from older releases of torch, which then run in float32.
        able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        amd = "AMD" in str(able.get("cpu_name", ""))
        return bool(able.get("amx_bf16") or (amd and able.get("avx512_bf16")))
    return False


def precision_of(network: nn.Module, precision: str, device: torch.device) -> str:
    """As ``resolved_precision``, but ``auto`` is float32 for networks that are slower in bfloat16.

    On CPUs those with depthwise convolutions: a training step of mobilenet_v2 took 75 ms in float32
    and 135 in bfloat16 (docs/networks.md).
    """
    if precision == "auto" and device.type == "cpu" and has_depthwise(network):
        return "float32"
    return resolved_precision(precision, device)


def has_depthwise(network: nn.Module) -> bool:
    """Whether some convolution sees one channel at a time."""
    return any(
        module.groups == module.in_channels > 1
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    )


def built_for() -> tuple[str, tuple[int, int] | None] | None:
    """CUDA's version that torch is built for, oldest compute capability; None for a CPU build."""
    if torch.version.cuda is None:
        return None
    codes = [arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list()]
    # sm_75 is 7.5, sm_120 is 12.0; compute_90 and sm_90a are variants.
    known = [(int(code[:-1]), int(code[-1])) for code in codes if code.isdigit()]
    return torch.version.cuda, min(known, default=None)


def describe_device() -> tuple[str, str]:
    """The device type that torch computes on here, and a line about it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = f"{cores()} cores"
    if device == "cuda":
        place = ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    name = resolved_precision("auto", torch.device(device))
    return device, f"torch {torch.__version__} computes in {name} on {place}"
