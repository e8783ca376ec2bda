"""Training of the evaluated networks: what a study sets, and what a network's training becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mgdm_ray.config.base import Frozen, Network, Positive

Augmentation = Literal["none", "standard", "trivialaugment", "randaugment"]

DEFAULT_STEPS = 600
"""Optimiser steps if a study gives neither ``steps`` nor ``epochs``."""


class Defaults(NamedTuple):
    """A network's recipe."""

    learning_rate: float
    batch_size: int
    warmup: float


USUAL = Defaults(1e-3, 32, 0.3)
NETWORK_RECIPES: dict[str, Defaults] = {
    "alexnet": Defaults(3e-4, 32, 0.3),
    "mobilenet_v2": Defaults(3e-3, 32, 0.3),
    "squeezenet1_1": Defaults(3e-4, 32, 0.3),
}
"""Chosen on validation splits, docs/networks.md; all other networks: USUAL."""

PLAIN: dict[str, Any] = {
    "warmup": 0.3,
    "schedule": "one_cycle",
    "augment": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "class_balanced": False,
    "checkpoint": "last",
}
"""Values that add nothing to the inputs of a job, so that a new option changes no key."""


class NetworkRecipe(Frozen):
    """What one network has of its own."""

    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak of the schedule."""
    batch_size: int | None = Field(None, ge=2)
    """Images per step."""
    warmup: float | None = Field(None, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""


class _Shared(Frozen):
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Weight decay of AdamW."""
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    """Learning rate: ``one_cycle`` rises and falls by cosines while AdamW's momentum does the
    opposite; ``cosine`` rises linearly, falls by a cosine to 0."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where it is faster for the network."""
    pretrained: str | None = None
    """Initial weights: ``hub`` (ImageNet weights of torchvision or timm), or a folder with
    NETWORK.safetensors for every network, relative to ``data_dir`` or absolute."""
    class_weighted: bool = False
    """Weight the loss by inverse class frequency of the real training set."""
    class_balanced: bool = False
    """Draw every class equally often, real and added images together."""
    mixup: float = Field(0.0, ge=0, le=10)
    """Alpha of MixUp: each batch is blended with itself in another order; 0 is off. With both,
    steps take one or the other at random."""
    cutmix: float = Field(0.0, ge=0, le=10)
    """Alpha of CutMix: a rectangle of each image comes from another; 0 is off."""
    checkpoint: Literal["last", "best_validation"] = "last"
    """Weights to evaluate: after the last step, or the best of ten equally spaced ones by
    validation balanced accuracy. All arms train to the end. A search always takes the last."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.class_weighted and self.class_balanced:
            raise ValueError(
                "'class_weighted' and 'class_balanced' both correct class frequencies: give one"
            )
        return self


class Training(_Shared):
    """Training of one network with all its numbers."""

    steps: Positive
    batch_size: int = Field(USUAL.batch_size, ge=2)
    learning_rate: float = Field(USUAL.learning_rate, gt=0, le=1)
    warmup: float = Field(USUAL.warmup, ge=0, lt=1)
    augment: Augmentation | Literal["judge"] = "none"
    """``judge``: as ``standard``, without shifts."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any], network: str, real_images: int) -> Training:
        """Of a job's inputs; an epoch is ``real_images``, so that all arms have equal steps."""
        given = {**inputs["downstream"], **inputs.get("recipes", {}).get(network, {})}
        given["steps"] = steps_of(given, real_images)
        return cls.model_validate({k: v for k, v in given.items() if k != "epochs"})


def steps_of(given: Mapping[str, Any], real_images: int) -> int:
    """Optimiser steps of a job's ``downstream``."""
    if "epochs" in given:
        return math.ceil(float(given["epochs"]) * real_images / int(given["batch_size"]))
    return int(given["steps"])


class DownstreamConfig(_Shared):
    """Training of the evaluated networks, equal for all arms."""

    steps: Positive | None = None
    """Optimiser steps, equal for all arms; default, without ``epochs``: 600."""
    epochs: float | None = Field(None, gt=0, le=10_000)
    """Instead of ``steps``: passes over as many images as the real training set has, equal steps
    for all arms."""
    batch_size: int | None = Field(None, ge=2)
    """Images per step; default: the network's recipe (docs/networks.md)."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak of the schedule; default: the network's recipe."""
    warmup: float | None = Field(None, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; default: the network's recipe."""
    recipes: dict[Network, NetworkRecipe] = Field({})
    """Values for single networks, before all others: ``{alexnet: {learning_rate: 1.0e-4}}``."""
    augment: Augmentation = "standard"
    """Augmentation of every arm: ``standard`` flips sideways, rotates by up to 10 degrees, scales,
    shifts and changes brightness and contrast a little; ``trivialaugment`` and ``randaugment`` are
    the published policies. The arm ``augment`` needs ``none``."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("'steps' and 'epochs' both say how long: give one of them")
        return self

    def recipe(self, network: str) -> dict[str, Any]:
        """Learning rate, batch and warm-up of ``network``."""
        own, usual = self.recipes.get(network), NETWORK_RECIPES.get(network, USUAL)._asdict()
        sources = [vars(own) if own else {}, vars(self), usual]
        return {name: next(s[name] for s in sources if s.get(name) is not None) for name in usual}

    def inputs(self, network: str) -> dict[str, Any]:
        """What a job that trains ``network`` depends on, without what is PLAIN."""
        values = self.model_dump(mode="json", exclude={"recipes"}) | self.recipe(network)
        if values["pretrained"] not in (None, "hub"):
            values["pretrained"] = "folder"  # its content counts, not its place
        if values["epochs"] is None:
            values["steps"] = values["steps"] or DEFAULT_STEPS
        unused = "steps" if values["steps"] is None else "epochs"
        return {
            name: value
            for name, value in values.items()
            if name != unused and not (name in PLAIN and PLAIN[name] == value)
        }
