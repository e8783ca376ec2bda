"""What a PATH on the command line is: folders, a manifest, an .npz, a study file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mgdm_ray.config import MEDMNIST, PHANTOMS, DatasetConfig, InputError, load_study
from mgdm_ray.data.npz import IMAGE_SUFFIX, open_npz, read_header, resolve_data_dir
from mgdm_ray.data.sources.source import kind_at

STUDIES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    kind: str
    config: DatasetConfig
    data_dir: str

    @property
    def path(self) -> Path:
        return Path(self.data_dir) / Path(self.config.path or "").expanduser()

    @property
    def is_npz(self) -> bool:
        return self.kind == "npz"


def find_sources(
    path: Path, group: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Source]:
    """The dataset at ``path``, or all datasets with a path in a study file.

    ``group`` and ``columns`` are options for images without a study file. InputError for unknown
    kinds.
    """
    if path.suffix.lower() in STUDIES:
        if group or columns:
            raise InputError(f"{path}: set split.group and columns in the study file, not here")
        study = load_study(path)
        folder = resolve_data_dir(study.data_dir)
        own = [d for d in study.datasets if d.path is not None]
        if not own:
            raise InputError(f"{path}: no dataset has a 'path', so there are no own images")
        return [Source(kind_at(Source("", d, folder).path), d, folder) for d in own]
    kind = kind_at(path)
    options: dict[str, Any] = {"path": str(path.absolute()), "name": name_of(path)}
    if kind == "npz":
        if group or columns:
            raise InputError(f"{path}: --group and --columns do not apply to an .npz")
        options["size"] = _npz_size(path)
    if group is not None:
        options["split"] = {"group": group}
    if columns:
        options["columns"] = dict(columns)
    try:
        return [Source(kind, DatasetConfig.model_validate(options), str(path.parent.absolute()))]
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path}: {wrong}") from None


def name_of(path: Path) -> str:
    """A valid name for a dataset or a study, from that of ``path``."""
    stem = path.resolve().stem if path.suffix else path.resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:50] or "images"
    return f"my-{name}" if name in (*MEDMNIST, *PHANTOMS) else name


def _npz_size(path: Path) -> int:
    with open_npz(path) as archive:
        shape = read_header(archive, "train" + IMAGE_SUFFIX).shape
    if len(shape) not in (3, 4) or shape[1] != shape[2]:
        raise InputError(f"{path}: train_images have shape {list(shape)}; [N, S, S] is needed")
    return int(shape[1])
