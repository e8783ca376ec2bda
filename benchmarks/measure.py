"""What both benchmarks need: networks, paired timing, the machine's matmul peak, peak memory."""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mgdm_ray.config import UNetConfig
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.precision import resolved_precision

UNET = UNetConfig(channels=(64, 96, 144), attention=(False, False, True), num_res_blocks=1)
SHAPE = (3, 32, 32)
CLASSES = 5
BATCH = 64


def networks() -> tuple[nn.Module, nn.Module]:
    """(denoiser, guide) of random weights, the zero-initialised ones too, the same every time."""
    pair = build_denoiser(UNET, 3, CLASSES, "bench"), build_guide(UNET, 3, CLASSES, "bench")
    numbers = torch.Generator().manual_seed(0)
    for network in pair:
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=numbers)
    return pair


def parameters(network: nn.Module) -> float:
    """In millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def paired(
    name: str, plain: Callable[[], object], ours: Callable[[], object], repeats: int, device: str
) -> tuple[float, float]:
    """(median of the ratios plain / ours of runs in turn, median seconds of ours)."""
    pairs = [(seconds(plain, device), seconds(ours, device)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    ratio, mine = statistics.median(ratios), statistics.median(b for _, b in pairs)
    plain_seconds = statistics.median(a for a, _ in pairs)
    print(
        f"{name}: {ratio:.2f} times the baseline (pairs {ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"{plain_seconds:.2f} s and {mine:.2f} s)",
        flush=True,
    )
    return ratio, mine


def matmul_peak(precision: str, device: str) -> float:
    """Measured flop/s of a product of two 2048 x 2048 matrices: the best of several."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(2048, 2048, device=device).to(kind) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(12))
    return 2 * 2048**3 / best


def forward_flops(network: nn.Module, batch: int, device: str) -> int:
    x = torch.zeros(batch, *SHAPE, device=device)
    t, y = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t, class_labels=y)
    return int(counter.get_total_flops())


def peak_mib(module: str, part: str, options: argparse.Namespace) -> float:
    """Peak memory of ``python -m module --only part`` in a process of its own."""
    command = [sys.executable, "-m", module, "--only", part, "--device", options.device]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.strip().splitlines()[-1])


def own_peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None, "this kernel's /proc/self/status has no VmHWM"
    return int(peak[1]) / 1024


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs per figure")
    parser.add_argument("--only", choices=["plain", "ours"], help=argparse.SUPPRESS)
    return parser


def describe(device: str) -> str:
    """Prints what runs where; returns the precision."""
    precision = resolved_precision("auto", torch.device(device))
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__} on {device} ({where}); ours in {precision}", flush=True)
    if precision == "float32":
        print("bfloat16 is not faster on this hardware: its targets do not apply", flush=True)
    return precision
