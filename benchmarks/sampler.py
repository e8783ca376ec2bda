"""Sampling against a plain loop: python -m benchmarks.sampler [--device cuda] [--compile].

The baseline is eager float32 in torch's default layout, one setting at a time, with the whole graph
kept for the guide's parameters. Same weights, same number of forwards. The last line is JSON.
"""

from __future__ import annotations

import copy
import json
import math

import torch
from torch import Tensor, nn

from benchmarks.measure import (
    BATCH,
    CLASSES,
    SHAPE,
    arguments,
    describe,
    forward_flops,
    matmul_peak,
    networks,
    own_peak_mib,
    paired,
    parameters,
    peak_mib,
    seconds,
)
from mgdm_ray.config import DenoiserConfig, GuidanceSetting, SamplingConfig
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs
from mgdm_ray.seeding import per_image_noise

SCHEDULE = make_schedule("cosine")
STEPS = 4
PAIRS = timestep_pairs(1000, STEPS)
LABELS = torch.arange(BATCH) % CLASSES
GAMMAS = [0.02 * 2**k for k in range(8)]
CONFIG = SamplingConfig(num_inference_steps=STEPS, guidance_scale=1.0, clip=False, batch_size=BATCH)
SETTING = GuidanceSetting(measurement="entropy", uncertainty_scale=1.0, gradient="raw")


class Plain:
    """The loops as one would first write them."""

    def __init__(self, denoiser: nn.Module, guide: nn.Module, device: str) -> None:
        self.denoiser, self.guide = denoiser.to(device).eval(), guide.to(device).eval()
        self.labels, self.device = LABELS.to(device), device

    def eps(self, x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            a = float(SCHEDULE.alphas_cumprod[t])
            v = self.denoiser(x, torch.full((len(x),), t).to(x.device), class_labels=self.labels)
            return math.sqrt(a) * v + math.sqrt(1 - a) * x

    def guided_eps(self, x: Tensor, t: int, gamma: float) -> Tensor:
        x_in = x.clone().requires_grad_()
        p = self.guide(x_in, torch.full((len(x),), t).to(x.device)).softmax(dim=1)
        entropy = -(p * p.log()).sum(dim=1) / math.log(CLASSES)
        entropy.sum().backward()
        assert x_in.grad is not None
        sigma = math.sqrt(1 - float(SCHEDULE.alphas_cumprod[t]))
        return self.eps(x, t) - sigma * gamma * x_in.grad

    @staticmethod
    def step(x: Tensor, eps: Tensor, t: int, to: int) -> Tensor:
        a, b = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(to)
        x_0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        return math.sqrt(b) * x_0 + math.sqrt(1 - b) * eps

    def generate(self) -> Tensor:
        x = per_image_noise(SHAPE, range(BATCH), "generate", 0, "x_T").to(self.device)
        for t, to in PAIRS:
            x = self.step(x, self.eps(x, t), t, to)
        return x

    def encode(self, x: Tensor) -> Tensor:
        for t, to in reversed(PAIRS):
            x = self.step(x, self.eps(x, max(to, 0)), to, t)
        return x

    def decode(self, x: Tensor, gamma: float) -> Tensor:
        for t, to in PAIRS:
            x = self.step(x, self.guided_eps(x, t, gamma), t, to)
        return x

    def two_stage(self, gamma: float = 1.0) -> Tensor:
        return self.decode(self.encode(self.generate()), gamma)

    def gammas(self) -> Tensor:
        x_0 = self.generate()
        return torch.cat([self.decode(self.encode(x_0), gamma) for gamma in GAMMAS])


class Ours:
    """The product's own functions."""

    def __init__(self, denoiser: nn.Module, guide: nn.Module, execution: Execution) -> None:
        trained = TrainedDenoiser(denoiser, DenoiserConfig(), SCHEDULE, CLASSES, SHAPE)
        self.sampler = Sampler(trained, guide, CONFIG, execution)

    def generate(self) -> Tensor:
        return self.sampler.generate(LABELS, range(BATCH))

    def encode(self, images: Tensor) -> Tensor:
        return self.sampler.encode(images, LABELS, range(BATCH))

    def decode(self, latents: Tensor, strengths: list[float]) -> Tensor:
        """Every latent under every strength, strength by strength."""
        count = len(strengths)
        return self.sampler.decode(
            latents.repeat(count, 1, 1, 1),
            LABELS.repeat(count),
            list(range(BATCH)) * count,
            SETTING,
            strengths=torch.tensor(strengths).repeat_interleave(BATCH),
        )

    def two_stage(self) -> Tensor:
        return self.decode(self.encode(self.generate()), [1.0])

    def gammas(self) -> Tensor:
        return self.decode(self.encode(self.generate()), GAMMAS)


def compare(name: str, plain: Tensor, ours: Tensor, precision: str) -> None:
    error = (ours - plain.cpu()).abs().max()
    if precision == "float32":
        print(f"{name}: largest difference {float(error):.1e} (1e-4 allowed)")
        assert error < 1e-4, "the results are not equal"
    else:
        span = float(plain.max() - plain.min())
        mse = float((ours - plain.cpu()).square().mean())
        psnr = 10 * math.log10(span**2 / mse)
        print(f"{name}: PSNR {psnr:.1f} dB against float32 (30 asked for)")
        assert psnr >= 30, "bfloat16 spoils the images"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    options = parser.parse_args()
    device = options.device
    denoiser, guide = networks()
    if options.only:  # a process of its own, for its peak memory
        if options.only == "plain":
            Plain(denoiser, guide, device).two_stage()
        else:
            Ours(denoiser, guide, Execution(device, compile="never")).two_stage()
        print(own_peak_mib(device))
        return
    precision = describe(device)
    print(
        f"UNet {parameters(denoiser):.2f} M, guide {parameters(guide):.2f} M parameters, batch "
        f"{BATCH} of {SHAPE}, {STEPS} steps per stage"
    )
    plain = Plain(copy.deepcopy(denoiser), copy.deepcopy(guide), device)
    ours = Ours(denoiser, guide, Execution(device, compile="never"))
    compare("unguided", plain.generate(), ours.generate(), precision)
    compare("two stages", plain.two_stage(), ours.two_stage(), precision)

    unguided, sampling = paired("unguided", plain.generate, ours.generate, options.repeats, device)
    two_stage, _ = paired(
        "generate + encode + decode", plain.two_stage, ours.two_stage, options.repeats, device
    )
    eight, _ = paired("eight gammas", plain.gammas, ours.gammas, 1, device)
    peak = matmul_peak(precision, device)
    share = forward_flops(plain.denoiser, BATCH, device) * STEPS / sampling / peak
    print(f"sampling runs at {share:.0%} of the {precision} matmul peak, {peak / 1e9:.0f} Gflop/s")
    memory = peak_mib("benchmarks.sampler", "ours", options)
    of_plain = peak_mib("benchmarks.sampler", "plain", options)
    print(f"peak memory {memory:.0f} MiB, baseline {of_plain:.0f} MiB (whole processes on a CPU)")
    result = {
        "unguided": round(unguided, 2),
        "two_stage": round(two_stage, 2),
        "eight_gammas": round(eight, 2),
        "matmul_share": round(share, 3),
        "peak_mib": round(memory),
    }
    if options.compile:
        compiled = Ours(copy.deepcopy(denoiser), guide, Execution(device, compile="always"))
        first = seconds(compiled.generate, device)
        gain, with_it = paired(
            "compiled (here the baseline is ours without)",
            ours.generate,
            compiled.generate,
            options.repeats,
            device,
        )
        cost = first - with_it
        result |= {"compile_seconds": round(cost, 1), "compile_gain": round(gain, 2)}
        after = cost / (1 - 1 / gain) if gain > 1 else math.inf
        print(f"compiling took {cost:.0f} s; it pays after {after:.0f} s of sampling")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
