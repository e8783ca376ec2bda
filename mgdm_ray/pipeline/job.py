"""A job of a plan: what it computes, what it needs, and the key of its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mgdm_ray.storage.records import Record

# Raise a kind's version when its code changes results: its artefacts are then computed anew.
VERSIONS = {
    "fit_denoiser": 2,
    "fit_guide": 3,
    "generate": 1,
    "encode": 2,
    "search": 3,
    "confirm": 1,
    "decode": 2,
    "fit_judge": 1,
    "assess": 1,
    "fit_downstream": 3,
    "fit_at_ratio": 1,
}
KINDS = tuple(VERSIONS)
FITS = ("fit_denoiser", "fit_guide")
SAMPLINGS = ("generate", "encode", "decode")
CELLS = ("fit_downstream", "fit_at_ratio")
"""The study's cells, and those of its ratio curve: they evaluate networks on the test split."""
OPENS_TEST = (*CELLS, "fit_judge", "assess")
"""Kinds that open the test split; the judge and ``assess`` for a baseline on held-out images."""
SCORINGS = ("search", "confirm")
"""Kinds that score settings: decode under each, train networks, evaluate on validation data."""
DRAWN = (*FITS, *SAMPLINGS, "assess")
"""Kinds that there may be one of for each draw of synthetic images; their ``seed`` is the draw."""
FEATURES = "features.safetensors"
"""Features of the judge, in the artefacts of ``fit_judge`` and ``assess``."""


@dataclass(frozen=True)
class Job:
    """A node of the plan.

    ``inputs`` are hashed into ``key``; ``needs`` maps a role (``denoiser``, ``latents/0``, ...) to
    the key of the job that fills it.
    """

    kind: str
    key: str
    inputs: dict[str, Any]
    needs: dict[str, str]
    dataset: str
    network: str | None = None
    arm: str | None = None
    seed: int | None = None
    detail: str = ""
    gate: str | None = None
    """Key of the ``assess`` job whose record must be within the study's ``limits`` before this
    one may run; not part of the key, because it does not change the result."""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Keys of its needs and its gate: all must end before it runs."""
        return tuple(dict.fromkeys([*self.needs.values(), *([self.gate] if self.gate else [])]))

    @property
    def label(self) -> str:
        """For people: ``fit_downstream breastmnist resnet18 disturb seed 0``."""
        parts = [self.kind, self.dataset, self.network, self.arm]
        parts.append(None if self.seed is None else f"seed {self.seed}")
        return " ".join(p for p in [*parts, self.detail] if p)


S = TypeVar("S", Job, Record)


def of_draw(items: Iterable[S], draw: int) -> list[S]:
    """``items`` without those that are of another draw; draw 0 has no seed, like what all share."""
    items = list(items)

    def group(one: S) -> tuple[str | None, ...]:
        return one.kind, one.dataset, one.network, one.arm

    own = {group(one) for one in items if one.seed == draw}
    return [
        one
        for one in items
        if one.kind not in DRAWN or one.seed == (draw if group(one) in own else None)
    ]


def search_seed(job: Job) -> int:
    """Seed of the sampler and the proxy networks; the images have the study's."""
    seed: int = job.inputs.get("search_seed", job.inputs["seed"])
    return seed


def fits_per_setting(inputs: Mapping[str, Any]) -> tuple[list[str], int]:
    """(networks, seeds of each) that a ``search`` or a ``confirm`` trains for one setting."""
    if "proxies" in inputs:
        return [*inputs["proxies"], *inputs["others"]], inputs["seeds"]
    return inputs["networks"], inputs.get("repeats", 1)
