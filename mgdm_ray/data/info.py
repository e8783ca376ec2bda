"""Facts of each dataset, known without its pixels: classes, task, licence, source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mgdm_ray.config import PHANTOMS, DatasetConfig, InputError, Task
from mgdm_ray.data import npz

ZENODO = "https://zenodo.org/records/10519652/files"
MEDMNIST_PAPER = "MedMNIST v2: Yang et al., Scientific Data 10:41, 2023"


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of one dataset at one size.

    ``classes[k]`` names label ``k``. ``url`` and ``md5`` of the official file; None without one.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    channels: Literal[1, 3]
    licence: str
    citation: str
    url: str | None = None
    md5: str | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)


_PHANTOMS: dict[str, tuple[Task, Literal[1, 3], tuple[str, ...]]] = {
    "phantom-ultrasound": ("binary", 1, ("benign", "malignant")),
    "phantom-fundus": ("ordinal", 3, ("0", "1", "2", "3", "4")),
    "phantom-xray": ("binary", 1, ("normal", "opacity")),
    "phantom-dermatoscopy": ("multiclass", 3, ("nevus", "melanoma", "keratosis", "vascular")),
}


@cache
def _medmnist() -> dict[str, dict[str, Any]]:
    """Facts by name, copied from medmnist.INFO 3.0.2, whose import would load torch."""
    return dict(json.loads(Path(__file__).with_name("medmnist.json").read_text(encoding="utf-8")))


def dataset_info(config: DatasetConfig, data_dir: str | Path | None) -> DatasetInfo:
    """Look up the facts of a built-in dataset, or read them from a user's .npz without its pixels.

    Raises InputError for a file that is missing or damaged.
    """
    if config.path is not None:
        return _npz_info(config, data_dir)
    if config.origin in PHANTOMS:
        citation = "Drawn by code: mgdm_ray.data.phantoms. Not images of patients."
        task, channels, classes = _PHANTOMS[config.origin]
        return DatasetInfo(config.name, task, classes, channels, "Apache-2.0", citation)
    facts = _medmnist()[config.origin]
    file = npz.npz_path(config, None).name  # refuses sizes that MedMNIST does not have
    return DatasetInfo(
        name=config.name,
        task=facts["task"],
        classes=tuple(facts["classes"]),
        channels=facts["channels"],
        licence=facts["licence"],
        citation=f"{MEDMNIST_PAPER}; images: {facts['source']}",
        url=f"{ZENODO}/{file}?download=1",
        md5=facts["md5"][str(config.size)],
    )


def _npz_info(config: DatasetConfig, data_dir: str | Path | None) -> DatasetInfo:
    path = npz.npz_path(config, data_dir)
    if not path.is_file():
        raise npz.missing_file(config, path, url=None)
    with npz.open_npz(path) as archive:
        channels = npz.channels_of(npz.read_header(archive, "train" + npz.IMAGE_SUFFIX))
        labels = npz.read_labels(archive, "train" + npz.LABEL_SUFFIX)
        classes = config.classes or npz.read_class_names(archive)
    number = int(labels.max(initial=-1)) + 1
    if classes is not None and len(classes) < number:
        raise InputError(
            f"dataset {config.name!r}: {len(classes)} class names, but {path} has labels up to "
            f"{number - 1}; list all names in 'classes'"
        )
    classes = classes or tuple(map(str, range(number)))
    if len(classes) < 2:
        raise InputError(f"{path}: train_labels have {number} class(es); at least 2 are needed")
    if config.task == "binary" and len(classes) != 2:
        raise InputError(
            f"dataset {config.name!r}: task is 'binary', but {path} has {len(classes)} classes; "
            "use 'multiclass' or 'ordinal'"
        )
    return DatasetInfo(
        name=config.name,
        task=config.task or ("binary" if len(classes) == 2 else "multiclass"),
        classes=classes,
        channels=channels,
        licence=config.licence or "not stated: your own data",
        citation=config.citation or f"your own data, {config.origin}",
    )
