"""The search of a guidance setting."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mgdm_ray.config.base import Frozen, MeasurementName, Name, Network, Positive, distinct
from mgdm_ray.config.diffusion import GuidanceControls
from mgdm_ray.config.optuna_classes import Pruner, Sampler


class ScaleRange(Frozen):
    """A search interval."""

    low: float = Field(gt=0, le=1e6)
    """Smallest value."""
    high: float = Field(gt=0, le=1e6)
    """Largest value."""
    log: bool = True
    """Search on a logarithmic axis."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"'low' must be below 'high'; got {self.low} and {self.high}")
        return self

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


class MeasurementSpace(Frozen):
    """Search ranges of one measurement."""

    uncertainty_scale: ScaleRange
    """Stage-2 strength of trials with this measurement."""


class SearchSpace(GuidanceControls):
    """The search space. Lists are categorical, and their samples and latents reused.

    The other guidance keys are the same for all trials.
    """

    guidance_scale: tuple[Annotated[float, Field(ge=0, le=50)], ...] | None = Field(
        None, min_length=1
    )
    """Stage-1 classifier-free scales; default: only ``sampling.guidance_scale``."""
    classifier_scale: tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None = Field(
        None, min_length=1
    )
    """Stage-1 classifier scales; default: only ``sampling.classifier_scale``."""
    measurement: Annotated[tuple[MeasurementName, ...], distinct("measurement")] = Field(
        ("entropy", "least_confidence"), min_length=1
    )
    """Stage-2 measurements. Those that are equivalent for two classes are tried once."""
    uncertainty_scale: ScaleRange = ScaleRange(low=0.02, high=0.5)
    """Stage-2 strength."""
    per_measurement: dict[MeasurementName, MeasurementSpace] = Field({})
    """Ranges of single measurements, whose optima differ."""

    @model_validator(mode="after")
    def _of_the_space(self) -> Self:
        for name in self.per_measurement:
            if name not in self.measurement:
                raise ValueError(
                    f"'per_measurement' names {name!r}, which is not searched; "
                    f"'measurement' is {list(self.measurement)}"
                )
        return self

    def strength_of(self, measurement: str) -> ScaleRange:
        """The range of ``uncertainty_scale`` for this measurement."""
        own = self.per_measurement.get(measurement)
        return self.uncertainty_scale if own is None else own.uncertainty_scale


class StartPoint(Frozen):
    """A setting to try before the sampler's suggestions."""

    measurement: MeasurementName
    """One of ``space.measurement``. For two classes, points with an equivalent measurement that is
    not tried are skipped."""
    uncertainty_scale: float = Field(gt=0, le=1e6)
    """Within the range of ``space``."""
    guidance_scale: float | None = Field(None, ge=0, le=50)
    """One of ``space.guidance_scale``; required if there are several."""
    classifier_scale: float | None = Field(None, ge=0, le=1000)
    """One of ``space.classifier_scale``; required if there are several."""


class ConfirmConfig(Frozen):
    """Score settings again after the search, on validation data with fresh seeds."""

    settings: int = Field(6, ge=1, le=1000)
    """Number of settings: the chosen one, and others evenly spread over the ranks of the trials. At
    least 5 are needed to judge how well proxy networks rank for the others."""
    seeds: int = Field(3, ge=1, le=1000)
    """Fresh seeds per setting and network."""


class SearchConfig(Frozen):
    """Ray Tune + Optuna over guidance settings, scored on validation data only."""

    trials: int = Field(12, ge=1, le=100_000)
    """Number of settings tried per search."""
    sampler: Sampler = "tpe"
    """Optuna's sampler: ``tpe``, ``gp``, ``nsga2``, ``random``, or a class with its arguments,
    e.g. ``{name: TPESampler, multivariate: true}``. ``grid``: evenly spaced strengths, so that
    ``trials`` of them cover the space, in random order."""
    pruner: Pruner = "none"
    """Stops a trial after one of its networks: ``median`` where its mean so far is below the
    median of the finished trials (from the sixth on), ``asha`` where it is not in the upper half
    after 1, 2, 4, ... networks, or an Optuna class, e.g. ``{name: PercentilePruner, percentile:
    25}``."""
    objective: Literal["accuracy", "accuracy_and_cost"] = "accuracy"
    """``accuracy_and_cost`` also minimises forwards per image, without pruning; the most accurate
    setting is used."""
    repeats: int = Field(1, ge=1, le=100)
    """Seeds with which a trial trains each proxy network; the score is their mean."""
    start: tuple[StartPoint, ...] = ()
    """Settings to try first."""
    warm_start: Name | None = None
    """An earlier study in this storage: its best settings within the space are tried after
    ``start``, per dataset."""
    networks: Annotated[tuple[Network, ...], distinct("network")] = Field(
        ("squeezenet1_1",), min_length=1
    )
    """Proxy networks: a trial's score is their mean validation balanced accuracy."""
    per: Literal["dataset", "network"] = "dataset"
    """One search per dataset with the proxy networks, or one per dataset and evaluated network."""
    images: Positive | None = None
    """Synthetic images per trial; default: as many as the arms use."""
    steps: Positive | None = None
    """Optimiser steps of a proxy network; default: ``downstream.steps``."""
    max_concurrent: Positive | None = None
    """Trials at once; default: as many as fit."""
    seed: int | None = Field(None, ge=0)
    """Seed of the sampler and of the proxy networks; default: the study's. Changing it repeats the
    search with the same models, samples and latents."""
    confirm: ConfirmConfig | None = None
    """Measure selection bias of the best score, and whether proxy networks rank settings as the
    study's other networks do; shown in the report."""
    space: SearchSpace = SearchSpace()

    @model_validator(mode="after")
    def _pruning(self) -> Self:
        if self.pruner == "none":
            return self
        pruner = self.pruner if isinstance(self.pruner, str) else self.pruner["name"]
        if self.objective != "accuracy":
            raise ValueError(
                f"pruner {pruner!r} compares one score, but objective {self.objective!r} "
                "has two: set pruner to none"
            )
        if self.per == "network" or len(self.networks) == 1:
            raise ValueError(
                f"pruner {pruner!r} stops a trial between its proxy networks, but there is "
                "only one: give several in 'networks' (with 'per: dataset'), or set pruner to none"
            )
        return self

    @model_validator(mode="after")
    def _start(self) -> Self:
        if len(self.start) > self.trials:
            raise ValueError(f"'start' has {len(self.start)} points, but 'trials' is {self.trials}")
        for index, point in enumerate(self.start):
            if point.measurement not in self.space.measurement:
                raise ValueError(
                    f"start[{index}]: measurement {point.measurement!r} is not in "
                    f"space.measurement {list(self.space.measurement)}"
                )
            strength = self.space.strength_of(point.measurement)
            if not strength.holds(point.uncertainty_scale):
                raise ValueError(
                    f"start[{index}]: uncertainty_scale {point.uncertainty_scale:g} is outside the "
                    f"space's {strength.low:g} to {strength.high:g} for {point.measurement!r}"
                )
        return self
