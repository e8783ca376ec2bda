"""README.md of a folder of models: what they are, what was measured, what they are not for.

Every number comes from the study's artefacts; what the study has not measured is said to be so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mgdm_ray.config import SAMPLED_ARMS
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.models_file import CONFIG_FILE, DENOISER_FILE, GUIDE_FILE, ModelsFile

if TYPE_CHECKING:
    from mgdm_ray.config import TrainConfig

NOT_MEASURED = "not measured"
FIGURES = {
    "FD": "fd",
    "FD, held-out real": "fd_real",
    "near-copies": "copy_rate",
    "near-copies, held-out real": "copy_rate_real",
    "label flips": "flip_rate",
    "label flips, held-out real": "flip_rate_real",
}
"""Column -> metric of an ``assess`` record."""


def model_card(study: FinishedStudy, models: ModelsFile) -> str:
    """The whole card, Markdown."""
    parts = [
        _what(models),
        _data(models),
        _recipe(models),
        _guide_over_t(study, models),
        _search(study, models),
        _images(study, models),
        _use(models),
        _memorisation(study, models),
        _loading(models),
    ]
    return "\n\n".join(parts) + "\n"


def _what(models: ModelsFile) -> str:
    colour = "grey" if models.channels == 1 else "colour"
    size = models.image_size
    denoiser = models.denoiser
    lines = [
        f"# Diffusion models of {_plain(models.data.name)}",
        f"Made by the study `{models.study}` of mgdm-ray {models.written_by['mgdm-ray']}. Research "
        "software: not a medical device, no diagnosis.",
        f"- `{DENOISER_FILE}`: a class-conditional diffusion model of {colour} images of {size} x "
        f"{size} pixels ({denoiser.parameters:,} parameters; noise schedule "
        f"{denoiser.config.schedule}, predicts {denoiser.config.prediction}), averaged weights.",
    ]
    if models.guide:
        lines.append(
            f"- `{GUIDE_FILE}`: a classifier of noisy images at every noise level "
            f"({models.guide.parameters:,} parameters), which guides it."
        )
    else:
        lines.append("- No guide: the study has none, so only unguided arms can be sampled.")
    lines.append(f"- `{CONFIG_FILE}`: all that is needed to use them; checksums of the weights.")
    named = [f"{label}: {_plain(name)}" for label, name in enumerate(models.classes)]
    return "\n".join([*lines, "", "Classes, by label: " + "; ".join(named) + "."])


def _data(models: ModelsFile) -> str:
    data = models.data
    variant = f", a variant of {_plain(data.source)}" if data.source != data.name else ""
    counts = _table(
        ["label", "class", "training images"],
        [
            [label, _plain(name), count]
            for label, (name, count) in enumerate(
                zip(models.classes, data.images_per_class, strict=True)
            )
        ],
    )
    shown = "" if data.pictures else " The study was told not to show its images."
    return (
        f"## Training data\n{_plain(data.name)}{variant}: {sum(data.images_per_class)} training "
        f"images.{shown}\n\n- Licence of the images: {_plain(data.licence)}\n- Citation: "
        f"{_plain(data.citation)}\n\n{counts}"
    )


def _recipe(models: ModelsFile) -> str:
    denoiser, guide = models.denoiser.config, models.guide.config if models.guide else None

    def row(what: str, name: str) -> list[Any]:
        values = [getattr(config, name, "-") if config else "-" for config in (denoiser, guide)]
        return [what, *values]

    rows = [
        ["channels per level", *(_levels(config) for config in (denoiser, guide))],
        row("optimiser steps", "steps"),
        row("batch size", "batch_size"),
        row("learning rate", "learning_rate"),
        row("class-balanced batches", "class_balanced"),
        row("loss weight", "loss_weight"),
        row("label dropout", "label_dropout"),
        row("decay of averaged weights", "ema_decay"),
        row("dropout", "dropout"),
        row("precision", "precision"),
    ]
    faults = ""
    if models.reference:
        faults = (
            "\n\nThe study reproduced faults of published code on purpose: "
            f"{', '.join(models.reference)}. `two_stage` of the Python interface has none of them."
        )
    return "## Recipe\n" + _table(["", "denoiser", "guide"], rows) + faults


def _levels(config: TrainConfig | None) -> str:
    return ", ".join(map(str, config.unet.channels)) if config else "-"


def _guide_over_t(study: FinishedStudy, models: ModelsFile) -> str:
    title = "## Measured: the guide over noise levels\n"
    if models.guide is None:
        return f"{title}{NOT_MEASURED}: there is no guide."
    path = study.store.folder("fit_guide", models.guide.key) / "accuracy_over_t.json"
    if not path.is_file():
        return title + NOT_MEASURED
    curve = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [t, f"{accuracy:.3f}", f"{ece:.3f}"]
        for t, accuracy, ece in zip(
            curve["t"], curve["balanced_accuracy"], curve["ece"], strict=True
        )
    ]
    return (
        f"{title}On noised validation images; t = 0 is clean, 999 is noise. Guessing stays below "
        f"{curve['chance_below']:.3f} in 19 of 20 cases; where the guide does not pass that, "
        "guidance knows no classes.\n\n"
        + _table(["t", "balanced accuracy", "calibration error"], rows)
    )


def _search(study: FinishedStudy, models: ModelsFile) -> str:
    title = "## Guidance setting\n"
    if models.setting is None:
        return f"{title}None: there is no guide."
    setting = {
        "guidance_scale": models.sampling.guidance_scale,
        "classifier_scale": models.sampling.classifier_scale,
        **models.setting.model_dump(mode="json"),
    }
    done = [
        study.record(job)
        for job in study.jobs("search", models.data.name)
        if study.store.is_done(job.kind, job.key)
    ]
    scores = [
        f"{record.metrics['best_score']:.3f}"
        for record in done
        if all(record.setting.get(name) == value for name, value in setting.items())
    ]
    found = (
        f"Chosen by a search; validation balanced accuracy {', '.join(scores)}, which is too high "
        "for having been chosen."
        if scores
        else "Given in the study's file; no search."
    )
    rows = [[f"`{name}`", value] for name, value in setting.items()]
    return f"{title}{found}\n\n" + _table(["", "value"], rows)


def _judged(study: FinishedStudy, dataset: str) -> list[tuple[str, dict[str, float]]]:
    """(arm, metrics) of the arms whose images the study has judged."""
    found = []
    for job in study.jobs("assess", dataset):
        if job.arm in SAMPLED_ARMS and study.store.is_done(job.kind, job.key):
            shown = f"{job.arm}, {job.network}" if job.network else str(job.arm)
            found.append((shown, study.record(job).metrics))
    return found


def _images(study: FinishedStudy, models: ModelsFile) -> str:
    title = "## Measured: the study's own images\n"
    judged = _judged(study, models.data.name)
    if not judged:
        return (
            f"{title}Distances, near-copies and label flips: {NOT_MEASURED} (the study had no "
            "judge)."
        )
    rows = [
        [arm, f"{metrics['images']:.0f}", *(_number(metrics, name) for name in FIGURES.values())]
        for arm, metrics in judged
    ]
    return (
        f"{title}By a network that was trained on real training images alone. Other settings, "
        "seeds and labels were not judged.\n\n" + _table(["arm", "images", *FIGURES], rows)
    )


def _number(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.3g}" if name in metrics else NOT_MEASURED


def _use(models: ModelsFile) -> str:
    return (
        "## Intended use, and what it is not for\nFor research on whether synthetic images help "
        f"to train classifiers of images like those of {_plain(models.data.name)}. Not for "
        "diagnosis, not for training or testing a product for patients, not as a substitute for "
        "real test images, and not for images of other devices, sizes or populations: none of "
        "that was measured. Bias of the training images is in the models, too. What the licence "
        "above forbids with the images may be forbidden with models and images made from them."
    )


def _memorisation(study: FinishedStudy, models: ModelsFile) -> str:
    rates = [
        f"{arm} {metrics['copy_rate']:.3g} (held-out real {_number(metrics, 'copy_rate_real')})"
        for arm, metrics in _judged(study, models.data.name)
        if "copy_rate" in metrics
    ]
    measured = "; ".join(rates) if rates else NOT_MEASURED
    return (
        "## Memorisation\nA diffusion model can repeat images that it was trained on, and these "
        "weights may give away more of them than the images that were looked at: treat them with "
        "the care that the training images need. Share of near-copies among the study's own "
        f"images: {measured}."
    )


def _loading(models: ModelsFile) -> str:
    label = len(models.classes) - 1
    guided = models.guide is not None
    guide = 'mgdm_ray.load_guide("models")' if guided else "None"
    setting = '{"measurement": "entropy", "uncertainty_scale": 0.1}' if guided else "None"
    return f"""## Loading
With this folder as `models`:

```python
import mgdm_ray
denoiser, guide = mgdm_ray.load_denoiser("models"), {guide}
setting = {setting}
images = mgdm_ray.two_stage(denoiser, guide, [{label}] * 4, setting, seed=1)
mgdm_ray.save_images(images, "made")
```

Four images of label {label}, float32 in [-1, 1], NCHW. Only safetensors and JSON are read."""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _plain(value: str) -> str:
    """Names and citations come from files: as one line of text, not as Markdown or HTML."""
    line = " ".join(value.split())
    for sign in "\\`*_|[]<>#":
        line = line.replace(sign, f"\\{sign}")
    return line
