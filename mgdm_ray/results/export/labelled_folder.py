"""A folder of labelled synthetic images: ``CLASS/000000.png``, ``manifest.csv``, ``manifest.json``.

Every image says in its own metadata that it is synthetic, by what it was made, and under which
licence the images are that its model was trained on: a file that leaves the folder keeps it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
"""Stands in the metadata of every image we write."""


@contextlib.contextmanager
def new_folder(target: Path, option: str) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` as a whole on leaving; on an error nothing stays.

    Raises InputError where ``target`` is there and not an empty folder.
    """
    target = target.expanduser().resolve()
    require_free(target, option)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name[:40]}.{uuid.uuid4().hex[:8]}.unfinished"
        temporary.mkdir()
    except OSError as error:
        raise InputError(
            f"{option} {target}: cannot be written to ({error.strerror}); give another place"
        ) from error
    try:
        yield temporary
        require_free(target, option)  # it was empty when we began
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(target: Path, option: str) -> None:
    """InputError unless ``target`` is absent, or an empty folder."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise InputError(f"{option} {target}: is a file; give a folder that is new or empty")
    if any(target.iterdir()):
        raise InputError(
            f"{option} {target}: is not empty, and nothing in it will be written over; give "
            "another folder, or empty this one first"
        )


def safe_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class: letters, digits, dot, underscore and hyphen, none twice.

    Names that differ in case only count as the same: some file systems cannot hold both.
    """
    names = []
    for label, name in enumerate(classes):
        plain = (
            re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST_NAME].strip(".-") or f"class-{label}"
        )
        names.append(plain)
    count = Counter(name.lower() for name in names)
    for label, name in enumerate(names):
        if count[name.lower()] > 1:
            candidate = f"{name}-{label}"
            while candidate.lower() in count:
                candidate += "-"
            count[candidate.lower()] += 1
            names[label] = candidate
    return tuple(names)


class LabelledFolder:
    """Writes images and their rows; ``close`` writes what is known of all of them."""

    def __init__(self, folder: Path, classes: Sequence[str], facts: Mapping[str, str]) -> None:
        """``facts`` are the same for all images, and stand in the metadata of each."""
        self.folder, self.classes, self.facts = folder, classes, dict(facts)
        self.names = safe_names(classes)
        self.counts = [0] * len(classes)
        with self._rows("w") as rows:
            rows.writerow(COLUMNS)

    @contextlib.contextmanager
    def _rows(self, mode: str) -> Iterator[Any]:
        path = self.folder / MANIFEST_CSV
        with path.open(mode, encoding="utf-8", newline="") as file:
            yield csv.writer(file, lineterminator="\n")

    def add(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int],
        indices: Sequence[int],
        seeds: Sequence[Mapping[str, Any]],
    ) -> None:
        """``images`` uint8 `[M, H, W, C]`, C 1 or 3; ``seeds``: what each one's noise is of."""
        with self._rows("a") as rows:
            for pixels, label, index, seed in zip(images, labels, indices, seeds, strict=True):
                name = f"{self.names[label]}/{index:06d}.png"
                path = self.folder / name
                path.parent.mkdir(exist_ok=True)
                own = {"class": self.classes[label], "index": str(index), "seed": json.dumps(seed)}
                picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
                picture.save(path, pnginfo=png_text({**self.facts, **own}))
                keys = [self.facts[key] for key in ("denoiser", "guide", "setting")]
                rows.writerow([name, label, self.classes[label], index, own["seed"], *keys])
                self.counts[label] += 1

    def close(self, facts: Mapping[str, Any]) -> None:
        """``manifest.json``: ``facts``, the classes with their folders, and how many images."""
        classes = [
            {"label": label, "class": name, "folder": folder, "images": count}
            for label, (name, folder, count) in enumerate(
                zip(self.classes, self.names, self.counts, strict=True)
            )
        ]
        whole = {**facts, "images": sum(self.counts), "classes": classes}
        text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False)
        (self.folder / MANIFEST_JSON).write_text(text + "\n", encoding="utf-8")


def png_text(facts: Mapping[str, str]) -> PngInfo:
    """Text chunks of a PNG file, by name."""
    info = PngInfo()
    for name, value in facts.items():
        info.add_text(name, value)
    return info
