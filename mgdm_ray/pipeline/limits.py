"""The study's ``limits``: which sets of synthetic images are refused, and why."""

from __future__ import annotations

from mgdm_ray.config import LimitsConfig
from mgdm_ray.storage.records import Record

MEASURES = {"copies": ("copy_rate", "near-copies"), "flips": ("flip_rate", "label flips")}
"""Field of ``limits`` -> its metric, and what that counts."""


def refusal(assessed: Record, limits: LimitsConfig) -> str:
    """Why ``limits`` refuse the images of ``assessed`` (a done ``assess`` record); else empty.

    Compares the rate above the baseline, that of held-out real images (0 if it was not measured).
    """
    found = []
    for name, (metric, what) in MEASURES.items():
        limit = getattr(limits, name)
        rate = assessed.metrics[metric]
        real = assessed.metrics.get(f"{metric}_real", 0.0)
        if limit is not None and rate - real > limit:
            found.append(
                f"limits.{name} is {limit:g}, but {_percent(rate)} of its "
                f"{assessed.metrics['images']:.0f} images are {what} (baseline on held-out real "
                f"images: {_percent(real)})"
            )
    return "; ".join(found)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
