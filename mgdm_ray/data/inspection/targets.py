"""What a PATH on the command line is: folders, a manifest, an .npz, a study file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mgdm_ray.config import MEDMNIST, PHANTOMS, DatasetConfig, InputError, load_study
from mgdm_ray.data.npz import IMAGE_SUFFIX, open_npz, read_header, resolve_data_dir
from mgdm_ray.data.sources.huggingface import is_huggingface
from mgdm_ray.data.sources.source import TABLES

STUDIES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """One dataset to look at."""

    kind: str
    config: DatasetConfig
    data_dir: str

    @property
    def path(self) -> Path:
        given = Path(self.config.path or "").expanduser()
        return given if given.is_absolute() else Path(self.data_dir) / given

    @property
    def is_npz(self) -> bool:
        return self.path.suffix.lower() == ".npz"


def find_sources(
    path: Path, group: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Source]:
    """The datasets at ``path``; of a study file all that are one's own, with their options.

    ``group`` and ``columns`` are for images without a study file. Raises InputError where there is
    nothing of a known kind.
    """
    if path.suffix.lower() in STUDIES:
        if group or columns:
            raise InputError(f"{path}: --group and --columns stand in the study file already")
        return _of_study(path)
    kind = kind_at(path)
    options: dict[str, object] = {"path": str(path.absolute()), "name": name_of(path)}
    if kind == "npz":
        if group or columns:
            raise InputError(f"{path}: an .npz has no columns and no names of files to group by")
        options["size"] = _npz_size(path)
    if group is not None:
        options["split"] = {"group": group}
    if columns:
        options["columns"] = dict(columns)
    try:
        return [Source(kind, DatasetConfig.model_validate(options), str(path.parent.absolute()))]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path}: {found}") from None


def kind_at(path: Path) -> str:
    """``class folders``, ``manifest``, ``Hugging Face folder`` or ``npz``. Raises InputError."""
    try:
        if path.is_file() and path.suffix.lower() == ".npz":
            return "npz"
        if path.is_file() and path.suffix.lower() in TABLES:
            return "manifest"
        if path.is_dir():
            return "Hugging Face folder" if is_huggingface(path) else "class folders"
        there = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    if not there:
        raise InputError(f"{path}: is not there")
    raise InputError(
        f"{path}: no folder, no manifest ({', '.join(TABLES)}), no .npz and no study file "
        f"({', '.join(STUDIES)})"
    )


def name_of(path: Path) -> str:
    """A name for a dataset or a study, made of the path's own."""
    stem = path.resolve().stem if path.suffix else path.resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:50] or "images"
    return f"my-{name}" if name in (*MEDMNIST, *PHANTOMS) else name


def _of_study(path: Path) -> list[Source]:
    study = load_study(path)
    folder = resolve_data_dir(study.data_dir)
    own = [d for d in study.datasets if d.path is not None]
    if not own:
        raise InputError(f"{path}: none of its datasets has a 'path': there is nothing of your own")
    found = [Source("", dataset, folder) for dataset in own]
    return [Source(kind_at(source.path), source.config, folder) for source in found]


def _npz_size(path: Path) -> int:
    with open_npz(path) as archive:
        shape = read_header(archive, "train" + IMAGE_SUFFIX).shape
    if len(shape) not in (3, 4) or shape[1] != shape[2]:
        raise InputError(f"{path}: train_images have shape {list(shape)}; [N, S, S] is needed")
    return int(shape[1])
