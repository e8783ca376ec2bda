"""Curves of an artefact, thinned, and figures of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 500

Curve = list[tuple[int, float]]
"""(step or t, value), ascending."""


def read_curves(folder: Path) -> dict[str, Curve]:
    """``loss`` over steps, ``guide_balanced_accuracy`` and ``guide_ece`` over t; finite points."""
    curves: dict[str, Curve] = {}
    history = folder / "history.json"
    if history.is_file():
        rows = json.loads(history.read_text(encoding="utf-8"))
        curves["loss"] = [(int(row["step"]), float(row["loss"])) for row in rows]
    over_t = folder / "accuracy_over_t.json"
    if over_t.is_file():
        table = json.loads(over_t.read_text(encoding="utf-8"))
        for name in ("balanced_accuracy", "ece"):
            if name in table:
                pairs = zip(table["t"], table[name], strict=True)
                curves[f"guide_{name}"] = [(int(t), float(value)) for t, value in pairs]
    thinned = {name: _thin(points) for name, points in curves.items()}
    return {name: points for name, points in thinned.items() if points}


def _thin(points: Curve) -> Curve:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    stride = math.ceil(len(finite) / MAX_POINTS) or 1
    return sorted({*finite[::stride], *finite[-1:]})


def curve_figure(title: str, name: str, points: Sequence[tuple[int, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], color="#30638e", linewidth=1.2)
    axes.set(title=title, xlabel="step" if name == "loss" else "t", ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    return figure
