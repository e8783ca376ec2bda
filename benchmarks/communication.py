"""What training workers send each other per step, and what a step takes without it.

    python -m benchmarks.communication

Starts 1, 2 and 4 gloo workers of one thread on this machine, trains the benchmark's denoiser with
DDP and with FSDP2 as ``mgdm_ray.diffusion.train`` does, and counts the bytes that go over the
loopback device. Several workers share this machine's cores, so their times say nothing about
scaling; docs/scaling.md says how to predict it.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import CLASSES, SHAPE, UNET, networks, parameters
from mgdm_ray.config import DenoiserConfig
from mgdm_ray.diffusion.batches import TrainingData
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import Hooks, train
from tests.chaos.storm import free_port

STEPS, WARM_UP = 6, 2
BATCHES = (8, 16, 32, 64)


def loopback_bytes() -> int:
    """Sent over the loopback device since the machine started."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[9])


def work(rank: int, world: int, batch: int, sharded: bool, port: int, folder: str) -> None:
    """One worker; the first one writes down the time and the counter after each step."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    steps: list[tuple[float, int]] = []
    # float32: the gradients have that size whatever the precision of the forward.
    config = DenoiserConfig(unet=UNET, steps=STEPS + WARM_UP, batch_size=batch, precision="float32")
    several = world > 1
    train(
        config,
        TrainingData(torch.zeros(64, *SHAPE), torch.arange(64) % CLASSES, CLASSES),
        0,
        make_schedule("cosine"),
        workers=Workers(
            rank,
            world,
            wrap=DistributedDataParallel if several and not sharded else None,
            sharded=several and sharded,
        ),
        hooks=Hooks(on_step=lambda *_: steps.append((time.perf_counter(), loopback_bytes()))),
    )
    if rank == 0:
        (Path(folder) / "steps.json").write_text(json.dumps(steps[WARM_UP - 1 :]))
    distributed.destroy_process_group()


def measure(world: int, batch: int, sharded: bool) -> tuple[float, float]:
    """(median seconds of a step, median MB that each worker sends in one)."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, batch, sharded, free_port(), folder)
        torch.multiprocessing.spawn(work, arguments, nprocs=world)
        steps = json.loads((Path(folder) / "steps.json").read_text())
    pairs = list(itertools.pairwise(steps))
    seconds = statistics.median(b[0] - a[0] for a, b in pairs)
    sent = statistics.median(b[1] - a[1] for a, b in pairs)
    return seconds, sent / world / 1e6


def main() -> None:
    size = 4 * parameters(networks()[0])  # MB
    print(f"weights: {size:.2f} MB in float32")
    alone = {batch: measure(1, batch, sharded=False)[0] for batch in BATCHES}
    for batch, seconds in alone.items():
        print(f"one worker, {batch:3d} images: {1000 * seconds:7.1f} ms a step")
    rows: list[dict[str, Any]] = []
    for sharded in (False, True):
        for world in (2, 4):
            seconds, sent = measure(world, 16, sharded)
            # A ring: everybody sends each of the n parts n - 1 times per pass over all weights;
            # an all-reduce is two passes, FSDP gathers twice and reduces once.
            passes = 3 if sharded else 2
            expected = passes * (world - 1) / world * size
            how = "FSDP2" if sharded else "DDP"
            print(
                f"{how:5} {world} workers: {sent:7.2f} MB sent by each per step, "
                f"formula {expected:.2f}, {1000 * seconds:.0f} ms"
            )
            rows.append(
                {"how": how, "workers": world, "MB": round(sent, 2), "formula": round(expected, 2)}
            )
    print(
        json.dumps(
            {
                "weights_MB": round(size, 2),
                "ms_by_batch": {b: round(1000 * s, 1) for b, s in alone.items()},
                "sent": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
