"""Training steps against a plain loop: python -m benchmarks.training [--device cuda].

The baseline is eager float32 in torch's default layout, with AdamW's and the average's loops over
parameters. Same weights and batches. The last line is JSON.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import (
    BATCH,
    CLASSES,
    SHAPE,
    UNET,
    arguments,
    describe,
    own_peak_mib,
    paired,
    parameters,
    peak_mib,
)
from mgdm_ray.config import DenoiserConfig, GuideConfig
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import train_step
from mgdm_ray.diffusion.train_state import Kind, new_state

SCHEDULE = make_schedule("cosine")
STEPS = 4
CONFIGS = {
    "denoiser": DenoiserConfig(unet=UNET, batch_size=BATCH, warmup=0, decay=False),
    "guide": GuideConfig(unet=UNET, batch_size=BATCH, warmup=0, decay=False),
}
IMAGES = torch.rand(256, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(256) % CLASSES
DATA = TrainingData(IMAGES, LABELS, CLASSES)


def ours(kind: Kind, device: str) -> tuple[Callable[[], None], list[float]]:
    """A function that trains STEPS steps, and the losses it has seen."""
    config, draws = CONFIGS[kind], BatchSource(CONFIGS[kind], DATA, 0)
    state = new_state(config, SHAPE[0], CLASSES, 0, device)
    state.model.train()
    losses: list[float] = []

    def run() -> None:
        for _ in range(STEPS):
            draw = draws.draw(state.step)
            step = train_step(state, state.model, DATA, draw, SCHEDULE)
            losses.append(step.loss)

    return run, losses


def plain(kind: Kind, device: str) -> tuple[Callable[[], None], list[float]]:
    """The same, as one would first write it."""
    config, draws = CONFIGS[kind], BatchSource(CONFIGS[kind], DATA, 0)
    model = new_state(config, SHAPE[0], CLASSES, 0, device).model
    model.to(memory_format=torch.contiguous_format).train()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=1e-2, foreach=False
    )
    losses: list[float] = []

    def loss_of(x_0: Tensor, y: Tensor, t: Tensor, noise: Tensor, drop: Tensor) -> Tensor:
        a = SCHEDULE.alphas_cumprod.to(device)[t].float().reshape(-1, 1, 1, 1)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        if kind == "guide":
            return torch.nn.functional.cross_entropy(model(x_t, t), y)
        v = a.sqrt() * noise - (1 - a).sqrt() * x_0
        prediction = model(x_t, t, class_labels=torch.where(drop, CLASSES, y))
        return (prediction - v).square().mean()

    def run() -> None:
        for _ in range(STEPS):
            draw, step = draws.draw(len(losses)), len(losses)
            x_0, y = IMAGES[draw.rows].to(device), LABELS[draw.rows].to(device)
            optimizer.zero_grad()
            loss = loss_of(
                x_0, y, draw.t.to(device), draw.noise.to(device), draw.drop_mask.to(device)
            )
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
            optimizer.step()
            decay = min(0.995, (1 + step) / (10 + step))
            if kind == "denoiser":
                with torch.no_grad():
                    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                        mean.mul_(decay).add_(value, alpha=1 - decay)
            losses.append(float(loss.detach()))

    return run, losses


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    device = options.device
    if options.only:  # a process of its own, for its peak memory
        run, _ = (plain if options.only == "plain" else ours)("denoiser", device)
        run()
        print(own_peak_mib(device))
        return
    precision = describe(device)
    kinds: tuple[Kind, ...] = ("denoiser", "guide")
    result = {}
    for kind in kinds:
        (run_plain, seen_plain), (run_ours, seen_ours) = plain(kind, device), ours(kind, device)
        run_plain()  # the first steps of both warm up, and show that they are the same
        run_ours()
        worst = max(abs(a - b) / abs(a) for a, b in zip(seen_plain[:2], seen_ours[:2], strict=True))
        allowed = 1e-4 if precision == "float32" else 0.02
        print(f"{kind}: losses of the first two steps differ by {worst:.1e} (allowed {allowed})")
        assert worst < allowed, "the losses are not equal"
        ratio, mine = paired(f"{kind}, {STEPS} steps", run_plain, run_ours, options.repeats, device)
        print(f"{kind}: {STEPS / mine:.2f} steps/s at batch {BATCH} of {SHAPE}")
        result[kind] = round(ratio, 2)
    print(f"UNet {parameters(new_state(CONFIGS['denoiser'], 3, 5, 0).model):.2f} M")
    memory = peak_mib("benchmarks.training", "ours", options)
    of_plain = peak_mib("benchmarks.training", "plain", options)
    print(f"peak memory {memory:.0f} MiB, baseline {of_plain:.0f} MiB (whole processes on a CPU)")
    print(json.dumps({**result, "peak_mib": round(memory)}))


if __name__ == "__main__":
    main()
