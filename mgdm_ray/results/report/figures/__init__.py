"""The report's figures, by matplotlib without a display; every function returns a Figure.

Colours mean the same everywhere: an arm, a dataset or a measurement keeps its colour. Figures
are drawn on white, also for a dark page, where they lie on a light card.
"""

from mgdm_ray.results.report.figures.base import (
    ARM_COLOURS,
    INK,
    WIDTH,
    Curve,
    colours,
    png,
    styled,
)
from mgdm_ray.results.report.figures.judged import entropies, fd_against_gain
from mgdm_ray.results.report.figures.outcomes import (
    forest,
    gains,
    network_gains,
    rank_diagram,
    ratio_curves,
)
from mgdm_ray.results.report.figures.searches import confirmed, heat_map, importance, search_scatter
from mgdm_ray.results.report.figures.training import guide_over_t, loss_curves, running_mean

__all__ = [
    "ARM_COLOURS",
    "INK",
    "WIDTH",
    "Curve",
    "colours",
    "confirmed",
    "entropies",
    "fd_against_gain",
    "forest",
    "gains",
    "guide_over_t",
    "heat_map",
    "importance",
    "loss_curves",
    "network_gains",
    "png",
    "rank_diagram",
    "ratio_curves",
    "running_mean",
    "search_scatter",
    "styled",
]
