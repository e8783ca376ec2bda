"""Draft a study file with comments, sized by the data and the machine."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from mgdm_ray.config.file import shipped_studies
from mgdm_ray.data.inspection.findings import UNEVEN, guess_group
from mgdm_ray.data.inspection.summary import median_sides
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.sources.prepare import TINY_CLASS
from mgdm_ray.environment import cores, gpus
from mgdm_ray.templates import templates

FEW_IMAGES = 200
"""With fewer training images a study is shorter: more steps would memorise them."""
MANY_CORES = 8


@dataclass(frozen=True)
class Machine:
    cores: int
    memory_gb: float
    gpus: int

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.memory_gb:.0f} GB of memory, {self.gpus} GPUs"


def machine() -> Machine:
    """This machine, without importing torch."""
    import psutil

    return Machine(cores(), psutil.virtual_memory().total / 1e9, gpus())


def study_text(found: Survey, name: str, here: Machine) -> str:
    """A study file that ``load_study`` accepts."""
    environment = templates(__file__, keep_trailing_newline=True)
    environment.filters["quoted"] = quoted
    config, items, classes = found.source.config, found.listing.items, found.listing.classes
    counts, size = found.counts(), _size(found, here)
    totals = map(sum, zip(*counts.values(), strict=True))
    train = [number for number in counts["train"] if number]
    schema = shipped_studies() / "study.schema.json"
    return environment.get_template("study.yaml.j2").render(
        schema=schema if schema.is_file() else None,
        images={split: sum(numbers) for split, numbers in counts.items()},
        machine=here,
        few_images=sum(train) < FEW_IMAGES,
        many_cores=here.cores >= MANY_CORES,
        size=size,
        levels=3 if size % 4 == 0 else 2 if size % 2 == 0 else 1,
        class_count=len(classes),
        name=name,
        path=str(found.source.path.absolute()),
        classes=classes if all(0 < len(label) <= 200 for label in classes) else None,
        task="binary" if len(classes) == 2 else "multiclass",
        columns=config.columns.model_dump(exclude_defaults=True),
        tiny=[(c, n) for c, n in zip(classes, totals, strict=True) if n < TINY_CLASS],
        least=TINY_CLASS,
        is_npz=found.source.is_npz,
        group=config.split.group,
        patients_known=all(item.group for item in items),
        guess=guess_group([item.path for item in items]),
        median=median_sides(found),
        why_size=_why_size(found, size, here),
        uneven=bool(train) and max(train) >= UNEVEN * min(train),
    )


def _size(found: Survey, here: Machine) -> int:
    """Of an .npz its own; else what the machine can handle, but no more than the images have."""
    if found.source.is_npz:
        return found.source.config.size
    wanted = 128 if here.gpus else 64 if here.cores >= 2 * MANY_CORES else 32
    return max(16, min(wanted, _largest_size(found)))


def _largest_size(found: Survey) -> int:
    """The median side, rounded down to a multiple of 8."""
    return min(median_sides(found)) // 8 * 8


def _why_size(found: Survey, size: int, here: Machine) -> str:
    if found.source.is_npz:
        return "that of the file"
    if size >= _largest_size(found):
        return "as large as the images"
    if here.gpus:
        return "enough for most signs of disease"
    return f"what {here.cores} cores can handle"


def quoted(text: str) -> str:
    """``text`` as a YAML string on one line."""
    line = yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)
    return line.strip()
