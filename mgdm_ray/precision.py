"""The precision that a network computes in, and how exactly a GPU repeats itself."""

from __future__ import annotations

import contextlib
import os
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


def set_up_gpu(device: str | torch.device, *, deterministic: bool, benchmark: bool = False) -> None:
    """Choose a GPU's arithmetic for this process, before the first product; nothing on a CPU.

    float32 products are TF32 (10 bits of mantissa, more than bfloat16's 7). ``benchmark``: cuDNN
    tries its algorithms on every new shape, which takes seconds and pays for long jobs of one
    shape. ``deterministic``: the same bits from every run on one kind of GPU, without either;
    where an operation has no such form, torch warns.
    """
    if torch.device(device).type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Its backward adds in any order; flash attention has another form, which torch then takes.
    torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)


def resolved_precision(precision: str, device: torch.device) -> str:
    """``bfloat16``, ``float16`` or ``float32``: what ``precision`` means on ``device``."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return precision


def sampling_precision(precision: str, device: torch.device, *, backward: bool) -> str:
    """As ``resolved_precision``, but ``auto`` is float16 on GPUs without bfloat16 (T4, RTX 20).

    With ``backward`` it is float32 there: small gradients vanish in float16.
    """
    if precision == "auto" and device.type == "cuda" and not backward and not has_bfloat16(device):
        return "float16"
    return resolved_precision(precision, device)


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
