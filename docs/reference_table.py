"""Measures what each fault of the published code is worth (python -m docs.reference_table).

Progress goes to stderr, the table to stdout; ``--write`` puts it into docs/reference.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mgdm_ray.classifiers.fit import Recipe, fit, predict
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import (
    PHANTOMS,
    REFERENCE_FAULTS,
    DatasetConfig,
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    ReferenceFault,
    SamplingConfig,
    Training,
    UNetConfig,
)
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source, to_tensor
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.data.npz import npz_path
from mgdm_ray.diffusion.batches import TrainingData
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.published_faults import rank_duplicates, respaced
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import guide_probabilities, train
from mgdm_ray.pipeline.tasks.fit import ACCURACY_TIMESTEPS

PAGE = Path(__file__).with_name("reference.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
START = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - START:6.0f} s  {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Images:
    """Labelled images of the trained denoiser, and what is made of them."""

    stage_one: Tensor
    labels: Tensor
    latents: Tensor
    returned: Tensor
    """encode -> decode without guidance."""
    guided: Tensor
    """encode -> decode under ``Bench.setting``."""


@dataclass(frozen=True)
class Row:
    name: str
    images: Images
    guide_accuracy: float
    figure: str = ""

    @property
    def round_trip(self) -> float:
        return rms(self.images.returned - self.images.stage_one)


class Bench:
    """One dataset, its models with and without faults, and the classifier that judges images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.seed = options, options.seed
        dataset = DatasetConfig(name=options.dataset, size=28)
        self.info = dataset_info(dataset, None)
        self.train, self.val = data_source(dataset).load("train"), data_source(dataset).load("val")
        self.schedule = make_schedule("cosine")
        unet = UNetConfig(channels=tuple(options.channels), attention=(False, False, True))
        shared = {"unet": unet, "batch_size": options.batch_size, "learning_rate": 2e-3}
        self.denoiser_config = DenoiserConfig(steps=options.denoiser_steps, **shared)
        self.guide_config = GuideConfig(steps=options.guide_steps, **shared)
        self.sampling = SamplingConfig(num_inference_steps=options.num_inference_steps)
        self.setting = GuidanceSetting(uncertainty_scale=options.gamma)
        self.labels = torch.from_numpy(
            synthetic_labels(
                self.train.labels,
                self.info.num_classes,
                options.images / len(self.train.labels),
                "proportional",
            )
        )

    def model(self, kind: str, *wrong: ReferenceFault) -> nn.Module:
        say(f"training the {kind}{' with ' + ', '.join(wrong) if wrong else ''}")
        config = self.denoiser_config if kind == "denoiser" else self.guide_config
        schedule = self.schedule
        if "guide_timesteps" in wrong:
            schedule = respaced(schedule, self.sampling.num_inference_steps)
        images, labels = to_tensor(self.train.images), torch.from_numpy(self.train.labels)
        return train(
            config,
            TrainingData(images, labels, self.info.num_classes),
            self.seed,
            schedule,
            workers=Workers(device=self.options.device),
            whole_batch_dropout="label_dropout" in wrong,
        ).trained

    @cached_property
    def denoiser(self) -> nn.Module:
        return self.model("denoiser")

    @cached_property
    def guide(self) -> nn.Module:
        return self.model("guide")

    @cached_property
    def judge(self) -> tuple[nn.Module, float]:
        """A network that has seen real images only, and its balanced accuracy on validation."""
        say("training the independent classifier")
        network = build_network(
            self.options.network, self.info.num_classes, self.info.channels, 28, self.seed
        )
        recipe = Recipe(
            Training(steps=self.options.network_steps, batch_size=64),
            self.info.num_classes,
            ("reference table", self.seed),
            device=self.options.device,
        )
        images, labels = to_tensor(self.train.images), torch.from_numpy(self.train.labels)
        result = fit(network, images, labels, recipe, {"val": to_tensor(self.val.images)})
        scores = score(result.probabilities["val"], self.val.labels, self.info.task)
        return network, scores["balanced_accuracy"]

    def classes(self, images: Tensor) -> np.ndarray:
        network, _ = self.judge
        clipped = images.clamp(-1, 1)
        return predict(network, clipped, self.info.num_classes, 64, self.options.device).argmax(1)

    def flips(self, images: Images, other: Tensor) -> float:
        """Share of images whose class changes from stage 1 to ``other``."""
        return float((self.classes(images.stage_one) != self.classes(other)).mean())

    def agreement(self, images: Images) -> float:
        """Share of stage-1 images that the independent classifier gives their own label."""
        return float((self.classes(images.stage_one) == images.labels.numpy()).mean())

    def guide_accuracy(self, guide: nn.Module) -> float:
        """Balanced accuracy on noisy validation images, mean over ``ACCURACY_TIMESTEPS``."""
        images = to_tensor(self.val.images)
        values = []
        for t in ACCURACY_TIMESTEPS:
            p = guide_probabilities(
                guide, images, self.schedule, self.seed, t, device=self.options.device
            )
            values.append(score(p.numpy(), self.val.labels, self.info.task)["balanced_accuracy"])
        return float(np.mean(values))

    def images(
        self,
        *wrong: ReferenceFault,
        denoiser: nn.Module | None = None,
        guide: nn.Module | None = None,
        sampling: SamplingConfig | None = None,
        stage_one: Tensor | None = None,
    ) -> Images:
        """Both stages; what is not given is without faults. ``stage_one`` is reused if given."""
        y, indices = self.labels, range(len(self.labels))
        shape = (self.info.channels, 28, 28)
        trained = TrainedDenoiser(
            denoiser or self.denoiser,
            self.denoiser_config,
            self.schedule,
            self.info.num_classes,
            shape,
        )
        sampler = Sampler(
            trained,
            guide or self.guide,
            sampling or self.sampling,
            Execution(self.options.device, compile="never"),
            seed=self.seed,
            faults=wrong,
        )
        if stage_one is None:
            stage_one = sampler.generate(
                y, rank_duplicates(y) if "rank_seeds" in wrong else indices
            )
        latents = sampler.encode(stage_one, y, indices)
        back, moved = (sampler.decode(latents, y, indices, s) for s in (None, self.setting))
        return Images(stage_one, y, latents, back, moved)


def rms(images: Tensor) -> float:
    return float(images.square().mean().sqrt())


def measured(bench: Bench) -> list[Row]:
    """One row per fault; the first two are what they are to be compared with."""
    plain, accuracy = bench.images(), bench.guide_accuracy(bench.guide)
    reuse = plain.stage_one
    pushed = rms(plain.guided - plain.returned)
    rows = [Row("none", plain, accuracy, f"own label {bench.agreement(plain):.2f}")]

    def guide_timesteps() -> Row:
        guide = bench.model("guide", "guide_timesteps")
        images = bench.images("guide_timesteps", guide=guide, stage_one=reuse)
        moved = rms(images.guided - images.returned)
        figure = f"push {moved:.3f} ({pushed:.3f})"
        return Row("guide_timesteps", images, bench.guide_accuracy(guide), figure)

    def alignment() -> Row:
        images = bench.images("alignment", stage_one=reuse)
        spread = f"latent std {float(images.latents.std()):.3f}"
        return Row("alignment", images, accuracy, f"{spread} ({float(plain.latents.std()):.3f})")

    def label_dropout() -> Row:
        denoiser = bench.model("denoiser", "label_dropout")
        images = bench.images("label_dropout", denoiser=denoiser)
        figure = f"own label {bench.agreement(images):.2f} ({bench.agreement(plain):.2f})"
        return Row("label_dropout", images, accuracy, figure)

    def clip() -> Row:
        outside = float((plain.returned.abs() > 1).double().mean())
        images = bench.images("clip", stage_one=reuse)
        return Row("clip", images, accuracy, f"{outside:.1%} of pixels leave [-1, 1] without it")

    def uint8() -> Row:
        images = bench.images("uint8", stage_one=reuse)
        shifts = [float((i.returned - reuse).mean()) * 127.5 for i in (images, plain)]
        return Row("uint8", images, accuracy, "grey levels {:+.2f} ({:+.2f})".format(*shifts))

    def measurement() -> Row:
        images = bench.images("measurement", stage_one=reuse)
        moved = rms(images.guided - images.returned)
        return Row("measurement", images, accuracy, f"push {moved:.5f} ({pushed:.3f})")

    def rank_seeds() -> Row:
        images = bench.images("rank_seeds")
        shares = [f"{duplicates(i.stage_one):.0%}" for i in (images, plain)]
        return Row("rank_seeds", images, accuracy, "duplicates {} ({})".format(*shares))

    ways: dict[ReferenceFault, Callable[[], Row]] = {
        "guide_timesteps": guide_timesteps,
        "alignment": alignment,
        "label_dropout": label_dropout,
        "clip": clip,
        "uint8": uint8,
        "measurement": measurement,
        "rank_seeds": rank_seeds,
    }
    for name in REFERENCE_FAULTS:
        say(f"measuring {name}")
        rows.append(replace(ways[name](), name=f"`{name}`"))
    for label, changes in (
        ("none, `clip_stage_two`", {"clip_stage_two": True}),
        ("none, `inversion_iterations: 2`", {"inversion_iterations": 2}),
    ):
        say(f"measuring {label}")
        sampling = bench.sampling.model_copy(update=changes)
        rows.append(Row(label, bench.images(sampling=sampling, stage_one=reuse), accuracy))
    return rows


def duplicates(images: Tensor) -> float:
    """Share of images that equal an earlier one (to a tenth of a grey level)."""
    flat = images.flatten(1)
    near = torch.cdist(flat, flat, p=float("inf")) < 0.1 / 127.5
    return float(near.tril(diagonal=-1).any(dim=1).double().mean())


def table(bench: Bench, rows: list[Row], command: str) -> str:
    options, (_, quality) = bench.options, bench.judge
    lines = [
        f"{options.dataset}, 28 px, {len(bench.labels)} images, "
        f"{options.num_inference_steps} steps, entropy guidance of gamma = {options.gamma:g}; "
        f"denoiser trained for {options.denoiser_steps} steps, guide for {options.guide_steps}; "
        f"the independent {options.network} has balanced accuracy {quality:.2f} on validation "
        f"images. In brackets: without the fault. (`{command}`)",
        "",
        "| fault | round trip, rms | guide accuracy over t | label flips, gamma = 0 | "
        "label flips, guided | its own figure |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        flips = [bench.flips(row.images, x) for x in (row.images.returned, row.images.guided)]
        lines.append(
            f"| {row.name} | {row.round_trip:.3f} | {row.guide_accuracy:.2f} "
            f"| {flips[0]:.2f} | {flips[1]:.2f} | {row.figure} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace what stands between the marks of docs/reference.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m docs.reference_table")
    add = parser.add_argument
    retina = npz_path(DatasetConfig(name="retinamnist"), None)
    at_hand = "retinamnist" if retina.exists() else "phantom-fundus"
    add("--dataset", default=at_hand, help=f"here {at_hand}; also {', '.join(PHANTOMS)}")
    add("--images", type=int, default=96, help="stage-1 images per row")
    add("--denoiser-steps", type=int, default=1600)
    add("--guide-steps", type=int, default=400)
    add("--network-steps", type=int, default=300, help="of the independent classifier")
    add("--network", default="resnet18", help="the independent classifier")
    add("--channels", type=int, nargs=3, default=[16, 48, 96], help="of denoiser and guide")
    add("--batch-size", type=int, default=16)
    add("--num-inference-steps", type=int, default=15)
    add("--gamma", type=float, default=0.1)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--write", action="store_true", help="put the table into docs/reference.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    bench = Bench(parsed(arguments))
    rows = measured(bench)
    text = table(bench, rows, " ".join(["python -m docs.reference_table", *arguments]))
    print(text)
    if bench.options.write:
        write(text)
    say("done")


if __name__ == "__main__":
    main(sys.argv[1:])
