"""The page of a check: one HTML file without scripts, with the images inside."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgdm_ray.config import InputError
from mgdm_ray.data.inspection.findings import Finding, Pair, caption
from mgdm_ray.data.inspection.summary import HEADER, class_rows, facts
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.sources.listing import shown
from mgdm_ray.storage.files import replacing
from mgdm_ray.templates import templates

PER_CLASS, MOST_CLASSES, PAIRS, ODD = 24, 60, 24, 8
Section = dict[str, Any]
"""What page.html.j2 shows of one dataset."""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page, readable by its owner only. InputError where it cannot be written."""
    page = templates(__file__, autoescape=True).get_template("page.html.j2")
    document = page.render(title=title, sections=sections)
    try:
        with replacing(path) as temporary:
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(document)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}") from None


def section_of(
    found: Survey, findings: Sequence[Finding], copies: list[list[int]], near: list[Pair]
) -> Section:
    """Everything about one dataset. ``copies``: groups of rows of identical images."""
    pairs = [(group[0], other, "identical") for group in copies for other in group[1:]]
    pairs += [(pair.first, pair.second, f"correlation {pair.value:.4f}") for pair in near]
    return {
        "name": found.source.config.name,
        "path": str(found.source.path),
        "findings": findings,
        "facts": facts(found),
        "header": HEADER,
        "rows": class_rows(found),
        "pairs": [(_image(found, a), _image(found, b), what) for a, b, what in pairs[:PAIRS]],
        "more_pairs": max(0, len(pairs) - PAIRS),
        "odd": _odd(found),
        "size": found.images.shape[1],
        "classes": _classes(found),
        "more_classes": max(0, len(found.listing.classes) - MOST_CLASSES),
    }


def refused_section(name: str, finding: Finding) -> Section:
    """A dataset whose images could not be listed."""
    return {"name": name, "path": None, "findings": [finding]}


def _odd(found: Survey) -> list[tuple[str, list[dict[str, str]]]]:
    """Titles and images: the smallest, the longest, the constant, those that may hold text."""
    known, rows = found.facts, range(len(found.facts))
    aspect = [max(one.width, one.height) / min(one.width, one.height) for one in known]
    small = sorted(rows, key=lambda row: known[row].width * known[row].height)[:ODD]
    long = sorted(rows, key=lambda row: -aspect[row])[:ODD]
    groups = (
        ("Smallest images", small),
        ("Longest images", [row for row in long if aspect[row] > 1 and row not in small]),
        ("Constant images", [row for row in rows if known[row].constant][:ODD]),
        ("Images that may hold burned-in text", [r for r in rows if known[r].text][:PER_CLASS]),
    )
    return [(title, [_image(found, row) for row in chosen]) for title, chosen in groups if chosen]


def _classes(found: Survey) -> list[tuple[str, list[dict[str, str]]]]:
    """Titles and images spread evenly over each class."""
    labels = np.array([item.label for item in found.listing.items], dtype=np.int64)
    parts = []
    for label, name in enumerate(found.listing.classes[:MOST_CLASSES]):
        rows = np.flatnonzero(labels == label)
        if len(rows):
            places = np.linspace(0, len(rows), PER_CLASS, endpoint=False).astype(int)
            images = [_image(found, int(row)) for row in rows[np.unique(places)]]
            parts.append((f"{label}: {shown(name)[1:-1]} ({len(rows)})", images))
    return parts


def _image(found: Survey, row: int) -> dict[str, str]:
    one, data = found.facts[row], io.BytesIO()
    Image.fromarray(np.asarray(found.images[row])).save(data, "PNG")
    return {
        "source": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii"),
        "name": caption(found, row, slice(1, -1)),
        "sides": f"{one.width} x {one.height}",
    }
