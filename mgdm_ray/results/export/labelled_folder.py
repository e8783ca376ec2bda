"""A folder of labelled synthetic images: ``CLASS/000000.png``, ``manifest.csv``, ``manifest.json``.

The metadata of every image name its origin and the licence of the training images.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mgdm_ray.config import InputError

MANIFEST_CSV, MANIFEST_JSON = "manifest.csv", "manifest.json"
COLUMNS = ("file", "label", "class", "index", "seed_parts", "denoiser", "guide", "setting")
LONGEST_NAME = 60
SYNTHETIC = {
    "synthetic": "true",
    "Comment": "Synthetic image, made by a model that was trained on real ones. Not an image of a "
    "patient.",
}
"""In the metadata of every image."""


@contextlib.contextmanager
def new_folder(target: Path, option: str) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` on leaving, or is deleted on an error.

    Raises InputError if ``target`` exists and is not an empty folder.
    """
    target = target.expanduser().resolve()
    require_free(target, option)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name[:40]}.{uuid.uuid4().hex[:8]}.unfinished"
        temporary.mkdir()
    except OSError as error:
        raise InputError(
            f"{option} {target}: cannot be written ({error.strerror}); give another folder"
        ) from error
    try:
        yield temporary
        require_free(target, option)  # it may have been filled meanwhile
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(target: Path, option: str) -> None:
    """InputError unless ``target`` does not exist, or is an empty folder."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise InputError(f"{option} {target}: is a file; give a new or empty folder")
    if any(target.iterdir()):
        raise InputError(
            f"{option} {target}: is not empty, and existing files are never overwritten; give "
            "another folder, or empty this one"
        )


def safe_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A unique folder name per class: letters, digits, dot, underscore and hyphen.

    Unique regardless of case, which some file systems ignore.
    """
    names = [
        re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST_NAME].strip(".-") or f"class-{label}"
        for label, name in enumerate(classes)
    ]
    count = Counter(name.lower() for name in names)
    for label, name in enumerate(names):
        if count[name.lower()] > 1:
            candidate = f"{name}-{label}"
            while candidate.lower() in count:
                candidate += "-"
            count[candidate.lower()] += 1
            names[label] = candidate
    return tuple(names)


def save_png(path: Path, pixels: NDArray[np.uint8], metadata: Mapping[str, str]) -> None:
    """Write ``pixels`` uint8 `[H, W, C]`, C 1 or 3, with ``metadata`` as text chunks."""
    info = PngInfo()
    for name, value in metadata.items():
        info.add_text(name, value)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, pnginfo=info)


class LabelledFolder:
    """Writes images and their rows of ``manifest.csv``; ``close`` writes ``manifest.json``."""

    def __init__(self, folder: Path, classes: Sequence[str], facts: Mapping[str, str]) -> None:
        """``facts``: metadata that all images share."""
        self.folder, self.classes, self.facts = folder, classes, dict(facts)
        self.names = safe_names(classes)
        self.counts = [0] * len(classes)
        self._append([COLUMNS])

    def _append(self, rows: Iterable[Sequence[object]]) -> None:
        path = self.folder / MANIFEST_CSV
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def add(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int],
        indices: Sequence[int],
        seeds: Sequence[Mapping[str, Any]],
    ) -> None:
        """``images`` uint8 `[M, H, W, C]`, C 1 or 3; ``seeds``: the parts of each image's seed."""
        keys, rows = [self.facts[key] for key in COLUMNS[5:]], []
        for pixels, label, index, parts in zip(images, labels, indices, seeds, strict=True):
            name, seed = f"{self.names[label]}/{index:06d}.png", json.dumps(parts)
            (self.folder / name).parent.mkdir(exist_ok=True)
            own = {"class": self.classes[label], "index": str(index), "seed": seed}
            save_png(self.folder / name, pixels, {**self.facts, **own})
            rows.append([name, label, self.classes[label], index, seed, *keys])
            self.counts[label] += 1
        self._append(rows)

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write ``manifest.json``: ``facts``, the classes with their folders and counts."""
        columns = zip(self.classes, self.names, self.counts, strict=True)
        classes = [
            {"label": label, "class": name, "folder": folder, "images": count}
            for label, (name, folder, count) in enumerate(columns)
        ]
        whole = {**facts, "images": sum(self.counts), "classes": classes}
        text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False)
        (self.folder / MANIFEST_JSON).write_text(text + "\n", encoding="utf-8")
