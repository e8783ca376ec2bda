"""What the denoiser learns in little time, by recipe: python -m benchmarks.recipes --help.

A row per recipe and dataset goes to a log; the same command again continues there. Models are kept
beside it, so that recipes of sampling alone train nothing. All is chosen on the validation split;
the test split stays closed. Figures: docs/recipes.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.image_scores import Data, accuracy_score, judged, load, measured
from mgdm_ray.config import DenoiserConfig, SamplingConfig
from mgdm_ray.data.load import to_tensor, to_uint8
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.data.npz import resolve_data_dir
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.diffusion.batches import TrainingData
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import Hooks, averaging, train, update_ema
from mgdm_ray.diffusion.train_state import TrainState, new_state
from mgdm_ray.pipeline.tasks.images import draw_grid
from mgdm_ray.seeding import content_key, per_image_noise

# What studies/medmnist-cpu.yaml trains; most steps for little time.
DENOISER = {"unet": {"channels": [16, 48, 96]}, "batch_size": 16, "learning_rate": 2e-3}
SAMPLING = {"num_inference_steps": 12, "solver": "second_order", "guidance_scale": 1.5}
EARLY = 0.25
"""Share of the steps after which the copy for autoguidance is taken."""


@dataclass(frozen=True)
class Recipe:
    """Changes of the baseline."""

    denoiser: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    steps: float = 1.0
    """Times those of the baseline: what costs more per step gets fewer."""
    unit_variance: bool = False
    """Learn images divided by their standard deviation: v of these is EDM's preconditioning."""
    shared: float = 0.0
    """Share of the steps on all datasets together, before those on one."""
    autoguidance: bool = False
    """Guide by an undertrained copy instead of the model without label."""


RECIPES: dict[str, Recipe] = {
    "baseline": Recipe(),
    "batch 8": Recipe({"batch_size": 8}, steps=2),
    "batch 32": Recipe({"batch_size": 32}, steps=0.5),
    "mirror": Recipe({"mirror": True}),
    "augment 0.12": Recipe({"augment": 0.12}),
    "dropout 0.1": Recipe({"dropout": 0.1}),
    "min_snr_soft": Recipe({"loss_weight": "min_snr_soft"}),
    "unit variance": Recipe(sampling={"clip": False}, unit_variance=True),
    "shared": Recipe(shared=0.5),
    "mirror, shared": Recipe({"mirror": True}, shared=0.5),
    "scale 1": Recipe(sampling={"guidance_scale": 1.0}),
    "scale 2.5": Recipe(sampling={"guidance_scale": 2.5}),
    "scale 2.5 in the middle": Recipe(
        sampling={"guidance_scale": 2.5, "guidance_interval": [200, 700]}
    ),
    "autoguidance 2": Recipe(sampling={"guidance_scale": 2.0}, autoguidance=True),
}
AVERAGES: dict[str, dict[str, float]] = {
    "ema_decay 0.995": {},
    "ema_decay 0.999": {"ema_decay": 0.999},
    "ema_width 0.1": {"ema_width": 0.1},
    "ema_width 0.2": {"ema_width": 0.2},
}
"""Of the weights of one training; the first is the default, whose images are looked at."""
AVERAGE = "ema_decay 0.995"
LEVELS = (100, 300, 500, 750)
"""Timesteps of the loss on held-out images."""


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A trained denoiser and its undertrained copy; images are divided by ``scale``."""

    trained: TrainedDenoiser
    early: nn.Module
    scale: float
    offset: int
    """Label of the dataset's class 0."""
    seconds: float
    steps: int
    losses: dict[str, float]
    """On held-out images, by average of the weights."""


def images_of(data: Data, recipe: Recipe, channels: int) -> tuple[Tensor, float]:
    """Images of the training split in ``channels``, and what they are divided by."""
    images = to_pixels(data.real.images)
    images = images.expand(-1, channels, -1, -1) if channels > images.shape[1] else images
    if not recipe.unit_variance:
        return images.contiguous(), 1.0
    values = to_tensor(data.real.images)
    scale = float(values.std())
    return values.expand(-1, channels, -1, -1).contiguous() / scale, scale


def model_of(recipe: Recipe, data: Data, every: list[Data], steps: int, folder: Path) -> Model:
    """Trained now, or found in ``folder``."""
    described = {
        "denoiser": dict(recipe.denoiser),
        "steps": round(recipe.steps * steps),
        "unit_variance": recipe.unit_variance,
        "shared": recipe.shared,
    }
    seen = [d.name for d in every] if recipe.shared else [data.name]
    text = json.dumps([data.name, len(data.real), seen, described], sort_keys=True)
    place = folder / "models" / f"{data.name}-{content_key(text)}"
    channels = max(d.info.channels for d in every) if recipe.shared else data.info.channels
    offsets = np.cumsum([0, *(d.info.num_classes for d in every)]).tolist()
    offset = offsets[every.index(data)] if recipe.shared else 0
    classes = offsets[-1] if recipe.shared else data.info.num_classes
    config = DenoiserConfig.model_validate({**DENOISER, **recipe.denoiser, "steps": 1})
    whole = described["steps"]
    early = max(1, round(EARLY * whole))
    config = config.model_copy(update={"steps": whole, "checkpoint_every": 1})
    images, scale = images_of(data, recipe, channels)
    schedule = make_schedule(config.schedule)
    if not (place / "facts.json").exists():
        started, resume = time.process_time(), None
        if recipe.shared:
            # The first part is paid by all datasets together.
            together = round(recipe.shared * whole * len(every))
            own = whole - round(recipe.shared * whole)
            config = config.model_copy(update={"steps": own})
            resume, paid = pretrained(recipe, every, together, classes, folder)
            started -= paid / len(every)
        labels = torch.from_numpy(data.real.labels) + offset
        averages: dict[str, nn.Module] = {}
        undertrained: dict[str, Tensor] = {}

        def keep(state: TrainState) -> None:
            for name, given in AVERAGES.items():
                if name not in averages:
                    averages[name] = copy.deepcopy(state.model).eval()
                decay = averaging(state.step - 1, config.model_copy(update=given))
                update_ema(averages[name], state.model, decay)
            if state.step == early and state.ema is not None:
                undertrained.update({k: v.clone() for k, v in state.ema.state_dict().items()})

        learnt = TrainingData(images, labels, classes)
        train(config, learnt, 0, schedule, resume=resume, hooks=Hooks(on_checkpoint=keep))
        seconds = time.process_time() - started
        place.mkdir(parents=True, exist_ok=True)
        save_file(undertrained, place / "early.safetensors")
        for name, network in averages.items():
            save_file(network.state_dict(), place / f"{name}.safetensors")
        facts = {"seconds": seconds, "steps": whole, "text": text}
        (place / "facts.json").write_text(json.dumps(facts))
    facts = json.loads((place / "facts.json").read_text())
    networks = []
    for name in (AVERAGE, "early"):
        network = new_state(config, channels, classes, 0).model
        network.load_state_dict(load_file(place / f"{name}.safetensors"))
        networks.append(network)
    size = data.real.images.shape[1]
    trained = TrainedDenoiser(networks[0], config, schedule, classes, (channels, size, size))
    found = Model(trained, networks[1], scale, offset, facts["seconds"], facts["steps"], {})
    for name in AVERAGES if not recipe.unit_variance else ():
        networks[0].load_state_dict(load_file(place / f"{name}.safetensors"))
        found.losses[name] = held_out_loss(found, data)
    networks[0].load_state_dict(load_file(place / f"{AVERAGE}.safetensors"))
    return found


@torch.no_grad()
def held_out_loss(model: Model, data: Data) -> float:
    """Mean squared error of v on up to 80 held-out images at LEVELS, each of its own noise."""
    trained = model.trained
    images = to_tensor(data.held.images)[:80].expand(-1, trained.shape[0], -1, -1)
    labels = torch.from_numpy(data.held.labels[:80]) + model.offset
    network, total = trained.model.eval(), 0.0
    for level in LEVELS:
        noise = per_image_noise(trained.shape, range(len(images)), "recipes", level)
        t = torch.full((len(images),), level)
        x_t = trained.schedule.q_sample(images, t, noise)
        error = network(x_t, t, class_labels=labels) - trained.schedule.v_target(images, t, noise)
        total += float(error.square().mean())
    return total / len(LEVELS)


def pretrained(
    recipe: Recipe, every: list[Data], steps: int, classes: int, folder: Path
) -> tuple[Path, float]:
    """A folder to resume from, trained on the union of all training splits; its CPU seconds."""
    union = [[d.name, len(d.real)] for d in every]
    text = json.dumps([union, dict(recipe.denoiser), recipe.unit_variance, steps], sort_keys=True)
    place = folder / "models" / f"shared-{content_key(text)}"
    if not (place / "seconds").exists():
        channels = max(d.info.channels for d in every)
        config = DenoiserConfig.model_validate(
            {**DENOISER, **recipe.denoiser, "steps": steps, "decay": False}
        )
        offsets = np.cumsum([0, *(d.info.num_classes for d in every)])
        images = torch.cat([images_of(d, recipe, channels)[0] for d in every])
        pairs = zip(every, offsets[:-1], strict=True)
        labels = [torch.from_numpy(d.real.labels) + int(offset) for d, offset in pairs]
        started = time.process_time()
        learnt = TrainingData(images, torch.cat(labels), classes)
        state = train(config, learnt, 0, make_schedule(config.schedule))
        state.step, state.history = 0, []
        state.save(place)
        (place / "seconds").write_text(str(time.process_time() - started))
    return place, float((place / "seconds").read_text())


# --- sampling ------------------------------------------------------------------------------------


class AutoGuided(nn.Module):
    """Where the sampler asks for no label, the undertrained copy answers with the label."""

    def __init__(self, model: nn.Module, early: nn.Module) -> None:
        super().__init__()
        self.model, self.early = model, early
        self.num_class_embeds = model.num_class_embeds

    def forward(self, x_t: Tensor, t: Tensor, *, class_labels: Tensor) -> Tensor:
        half = len(x_t) // 2
        if half == 0 or int(class_labels[-1]) != int(self.num_class_embeds) - 1:
            answer: Tensor = self.model(x_t, t, class_labels=class_labels)
            return answer
        labels = class_labels[:half]
        one = self.model(x_t[:half], t[:half], class_labels=labels)
        return torch.cat([one, self.early(x_t[half:], t[half:], class_labels=labels)])


def sampled(model: Model, recipe: Recipe, labels: NDArray[np.int64], grey: bool) -> Tensor:
    """Images `[N, C, H, W]` in [-1, 1]."""
    config = SamplingConfig.model_validate({**SAMPLING, **recipe.sampling, "batch_size": 64})
    trained = model.trained
    if recipe.autoguidance:
        trained = replace(trained, model=AutoGuided(trained.model, model.early))
    sampler = Sampler(trained, None, config)
    y = torch.from_numpy(labels) + model.offset
    images = (sampler.generate(y, range(len(y))) * model.scale).clamp(-1, 1)
    return images.mean(dim=1, keepdim=True) if grey and images.shape[1] > 1 else images


def row(name: str, data: Data, every: list[Data], options: argparse.Namespace) -> dict[str, Any]:
    recipe = RECIPES[name]
    model = model_of(recipe, data, every, options.steps, options.folder)
    found: dict[str, Any] = {"steps": model.steps, "train_s": model.seconds, "loss": model.losses}
    if options.loss_only:
        return found
    judge = judged(data, options.seeds, options.folder)
    labels = synthetic_labels(
        data.real.labels, data.info.num_classes, 0.5, "proportional", "recipes"
    )
    started = time.process_time()
    images = sampled(model, recipe, labels, data.info.channels == 1)
    found["sample_s"] = time.process_time() - started
    pictures = options.folder / "grids"
    pictures.mkdir(exist_ok=True)
    picture = pictures / f"{data.name} {name} {options.steps}.png"
    draw_grid(picture, images, labels, data.info.num_classes)
    scores = accuracy_score(to_pixels(to_uint8(images)), labels, data, options.seeds)
    relative = {f"relative_{k}": v / judge.score[k] for k, v in scores.items()}
    real = {f"{k}_real": v for k, v in judge.score.items()}
    return {**found, **measured(images, labels, data, judge), **scores, **real, **relative}


HEAD = "recipe, dataset, CPU s, held-out loss, accuracy score, AUROC, FD, coverage, flips, copies"


def shown(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: real images' numbers in brackets."""
    head = HEAD.split(", ")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for r in rows:
        loss = r["loss"].get(AVERAGE)
        cells = [r["recipe"], r["dataset"], f"{r['train_s']:.0f}", f"{loss:.4f}" if loss else ""]
        if "fd" in r:
            cells += [f"{r[k]:.2f} ({r[k + '_real']:.2f})" for k in SCORES]
            cells.append(f"{r['copies']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


SCORES = ("balanced_accuracy", "auroc", "fd", "coverage", "flips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("recipes"))
    parser.add_argument("--data", type=Path)
    parser.add_argument(
        "--datasets", nargs="+", default=["breastmnist", "pneumoniamnist", "retinamnist"]
    )
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of the baseline")
    parser.add_argument("--train-size", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2, help="networks of an accuracy score")
    parser.add_argument("--loss-only", action="store_true", help="draw no images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "recipes.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    folder = Path(resolve_data_dir(options.data))
    every = [load(n, folder, options.train_size) for n in options.datasets]
    for name, data in product(options.recipes, every):
        seen = [d.name for d in every] if RECIPES[name].shared else [data.name]
        asked = [name, *seen, data.name, options.steps, len(data.real), options.seeds]
        key = content_key(json.dumps([*asked, options.loss_only]))
        if any(r["key"] == key for r in rows):
            continue
        found = row(name, data, every, options)
        rows.append({"key": key, "recipe": name, "dataset": data.name, **found})
        with log.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    print(shown(rows))


if __name__ == "__main__":
    main()
