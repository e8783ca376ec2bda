"""A study file with comments, sized by the data and the machine."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from mgdm_ray.config.file import shipped_studies
from mgdm_ray.data.inspection.findings import UNEVEN
from mgdm_ray.data.inspection.patients import guess_group
from mgdm_ray.data.inspection.summary import median_sides
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.environment import cores, gpus

FEW_IMAGES = 200
"""Training images below which a study is made shorter: more steps would learn them by heart."""
MANY_CORES = 8
TINY = 5


@dataclass(frozen=True)
class Machine:
    """What a study can use here."""

    cores: int
    memory_gb: float
    gpus: int

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.memory_gb:.0f} GB of memory, {self.gpus} GPUs"


@dataclass(frozen=True)
class Scale:
    """The numbers of a study that depend on the data and the machine."""

    size: int
    channels: tuple[int, ...]
    denoiser_steps: int
    guide_steps: int
    batch: int
    networks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    trials: int
    downstream_steps: int
    train_size: int | None


def machine() -> Machine:
    """This machine, told without torch."""
    import psutil

    return Machine(cores(), psutil.virtual_memory().total / 1e9, gpus())


def study_text(found: Survey, name: str, here: Machine) -> str:
    """A study file that ``load_study`` takes."""
    chosen = scale_of(found, here)
    parts = [
        *_head(found, name, here),
        *_dataset(found, name, chosen),
        *_networks(found, chosen, here),
        *_models(chosen, here),
        *_evaluation(found, chosen),
    ]
    return "\n".join(parts) + "\n"


def scale_of(found: Survey, here: Machine) -> Scale:
    train = sum(found.counts()["train"])
    size = _size(found, here)
    levels = 3 if size % 4 == 0 else 2 if size % 2 == 0 else 1
    small = train < FEW_IMAGES
    cap = 600 if here.cores < MANY_CORES else 2000
    cap = max(cap, 10 * len(found.listing.classes))
    slow_arms = ("real", "duplicate", "generate", "roundtrip", "disturb")
    if here.gpus:
        return Scale(
            size=size,
            channels=(64, 128, 256)[:levels],
            denoiser_steps=8000 if small else 20000,
            guide_steps=2000 if small else 5000,
            batch=32 if here.memory_gb < 16 else 64,
            networks=("resnet18", "densenet121", "efficientnet_b0"),
            arms=("real", "augment", *slow_arms[1:-1], "perturb", "disturb"),
            seeds=3,
            trials=30,
            downstream_steps=300 if small else 1000,
            train_size=None,
        )
    more = here.cores >= MANY_CORES
    return Scale(
        size=size,
        channels=(16, 48, 96)[:levels],
        denoiser_steps=(1000 if small else 2000) * (2 if more else 1),
        guide_steps=300 if small else 500,
        batch=16,
        # With fewer steps networks stay at chance, whatever is added; and three networks with
        # fewer seeds are too few pairs for any difference to be called one.
        networks=("resnet18", "googlenet", "mobilenet_v2"),
        arms=slow_arms,
        seeds=5,
        trials=16 if more else 8,
        downstream_steps=150 if small else 200,
        train_size=cap if train > cap else None,
    )


def _size(found: Survey, here: Machine) -> int:
    """Of an .npz its own; else what the machine manages, no more than the images have."""
    if found.source.is_npz:
        return found.source.config.size
    wanted = 128 if here.gpus else 64 if here.cores >= 2 * MANY_CORES else 32
    return max(16, min(wanted, _most_of(found)))


def _most_of(found: Survey) -> int:
    """As large as half of the images are, in steps of 8."""
    return min(median_sides(found)) // 8 * 8


def _head(found: Survey, name: str, here: Machine) -> list[str]:
    schema = shipped_studies() / "study.schema.json"
    lines = [f"# yaml-language-server: $schema={schema}"] if schema.is_file() else []
    train, val, test = (sum(numbers) for numbers in found.counts().values())
    return [
        *lines,
        f"# Written for {train} training, {val} validation and {test} test images,",
        f"# and for a machine with {here}.",
        "# Every key, its default and its meaning: docs/keys.md.",
        f"name: {quoted(name)}",
    ]


def _dataset(found: Survey, name: str, chosen: Scale) -> list[str]:
    config, classes = found.source.config, found.listing.classes
    lines = [
        "datasets:",
        f"  - name: {quoted(name)}",
        f"    path: {quoted(str(found.source.path.absolute()))}",
        "    # The order of the classes, which numbers them. task: ordinal where they are grades.",
    ]
    if all(0 < len(label) <= 200 for label in classes):
        lines.append(f"    classes: [{', '.join(map(quoted, classes))}]")
    lines.append(f"    task: {'binary' if len(classes) == 2 else 'multiclass'}")
    given = config.columns.model_dump(exclude_defaults=True)
    if given:
        pairs = ", ".join(f"{key}: {quoted(value)}" for key, value in given.items())
        lines.append(f"    columns: {{{pairs}}}")
    lines += _tiny(found)
    if not found.source.is_npz:
        lines += [*_split(found), *_reading(found)]
    if chosen.train_size:
        lines += [
            "    # A seeded, stratified part of the training images; more of them take longer.",
            f"    train_size: {chosen.train_size}",
        ]
    return [
        *lines,
        "    # Fill these in; the report and whoever gets images is told.",
        "    # licence: may not be passed on",
        "    # citation: where the images come from, and who may be asked",
        "    # false: numbers and curves only, no image in the report and in MLflow.",
        "    pictures: true",
    ]


def _tiny(found: Survey) -> list[str]:
    counts = found.counts()
    totals = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
    tiny = [
        f"{quoted(name)} {total}"
        for name, total in zip(found.listing.classes, totals, strict=True)
        if total < TINY
    ]
    if not tiny:
        return []
    return [
        f"    # Classes of fewer than {TINY} images: {', '.join(tiny)}.",
        "    # Add images or join them with others: models learn little of them.",
    ]


def _split(found: Survey) -> list[str]:
    split = found.source.config.split
    if split.group is not None:
        return [
            "    # What its bracket matches in the path of an image is the patient.",
            f"    split: {{group: {quoted(split.group)}}}",
        ]
    if all(item.group for item in found.listing.items):
        return ["    # Patients are known from the data: each stays in one split."]
    guess = guess_group([item.path for item in found.listing.items])
    lines = ["    # Patients are not known: images of one may stand in two splits."]
    if guess is None:
        return [*lines, "    # split: {group: 'EXPRESSION'}, or a column 'group' in a manifest."]
    return [
        *lines,
        f"    # Names of files suggest {guess.patients} patients. If that is so, say:",
        f"    # split: {{group: {quoted(guess.pattern)}}}",
    ]


def _reading(found: Survey) -> list[str]:
    wide, high = median_sides(found)
    return [
        f"    # Images are {wide} x {high} (median). fit: pad (black bars), crop or stretch;",
        "    # window: [centre, width] of the values shown, for more than 8 bits;",
        "    # damaged: leave_out goes on without files that cannot be read.",
        "    reading: {fit: pad}",
    ]


def _networks(found: Survey, chosen: Scale, here: Machine) -> list[str]:
    why = "of the file" if found.source.is_npz else f"what {here.cores} cores manage in a sitting"
    if not found.source.is_npz and here.gpus:
        why = "what most marks of disease need"
    if not found.source.is_npz and chosen.size >= _most_of(found):
        why = "the images have no more"
    return [
        f"# Height and width, {why}; twice as much takes four times as long.",
        f"image_size: {chosen.size}",
        f"networks: [{', '.join(chosen.networks)}]",
        f"arms: [{', '.join(chosen.arms)}]",
        "# Networks trained per arm, each with other weights: more resolve smaller differences.",
        f"seeds: {chosen.seeds}",
        "",
    ]


def _models(chosen: Scale, here: Machine) -> list[str]:
    levels = len(chosen.channels)
    attention = ", ".join(["false"] * (levels - 1) + ["true"])
    unet = f"{{channels: {list(chosen.channels)}, attention: [{attention}]}}"
    rate = "0.0003" if here.gpus else "0.002"
    lines = []
    for what, steps in (("denoiser", chosen.denoiser_steps), ("guide", chosen.guide_steps)):
        lines += [
            f"{what}:",
            f"  unet: {unet}",
            f"  steps: {steps}",
            f"  batch_size: {chosen.batch}",
            f"  learning_rate: {rate}",
            "  checkpoint_every: 200",
        ]
    steps = 50 if here.gpus else 15
    lines += [
        "sampling:",
        f"  num_inference_steps: {steps}",
        "  solver: second_order",
        "  inversion_iterations: 2       # without guidance, decoding gives the image back",
        "  guidance_scale: 1.5",
    ]
    if here.gpus:
        lines.append("resources: {gpus_per_worker: 1, gpus_per_task: 0.5}")
    return [*lines, ""]


def _evaluation(found: Survey, chosen: Scale) -> list[str]:
    train = [number for number in found.counts()["train"] if number]
    uneven = bool(train) and max(train) >= UNEVEN * min(train)
    lines = ["# Added images per real one, and of which classes."]
    if uneven:
        lines.append(
            "# The classes are uneven: as many of each are added, and the loss is weighted."
        )
    balance = "balanced" if uneven else "proportional"
    weighted = ", class_weighted: true" if uneven else ""
    return [
        *lines,
        f"synthetic: {{ratio: 1.0, balance: {balance}}}",
        "# Finds the guidance on validation images; the test split is opened once, at the end.",
        "# Its network must learn in its steps: else all trials score the same.",
        "search:",
        f"  trials: {chosen.trials}",
        f"  networks: [{chosen.networks[0]}]",
        "  images: 64",
        f"  steps: {chosen.downstream_steps}",
        "  space:",
        "    measurement: [entropy, least_confidence]",
        "    uncertainty_scale: {low: 0.01, high: 0.3}",
        "# Looks at the synthetic images: copies of patients, flipped labels.",
        f"judge: {{network: resnet34, steps: {max(100, chosen.downstream_steps)}}}",
        "# Of every network in every arm. One that the report shows at chance needs more steps.",
        f"downstream: {{steps: {chosen.downstream_steps}, batch_size: 16, "
        f"learning_rate: 0.001{weighted}}}",
    ]


def quoted(text: str) -> str:
    """``text`` as YAML that reads as the same text, on one line."""
    line = yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)
    return line.strip()
