"""The study's ``limits``: which sets of synthetic images are refused, and in which words."""

from __future__ import annotations

from mgdm_ray.config import LimitsConfig
from mgdm_ray.storage.records import Record

MEASURES = {"copies": ("copy_rate", "near-copies"), "flips": ("flip_rate", "label flips")}
"""Field of ``limits`` -> the metric it limits, and what that counts."""


def refusal(assessed: Record, limits: LimitsConfig) -> str:
    """Why the images that ``assessed`` (a done ``assess`` record) is about are refused; empty
    where they are within ``limits``.

    What counts is the rate beyond that of held-out real images; where there are none to tell, the
    whole rate.
    """
    found = []
    for name, (metric, what) in MEASURES.items():
        limit = getattr(limits, name)
        rate = assessed.metrics[metric]
        real = assessed.metrics.get(f"{metric}_real", 0.0)
        if limit is not None and rate - real > limit:
            found.append(
                f"limits.{name} is {limit:g}, and {_percent(rate)} of its "
                f"{assessed.metrics['images']:.0f} images are {what} ({_percent(real)} of held-out "
                "real ones)"
            )
    return "; ".join(found)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
