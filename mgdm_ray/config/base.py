"""What all parts of the study file share: known names, strictness, how mistakes are told."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Arm = Literal["real", "augment", "duplicate", "generate", "roundtrip", "perturb", "disturb"]
ARMS: tuple[Arm, ...] = (
    "real",
    "augment",
    "duplicate",
    "generate",
    "roundtrip",
    "perturb",
    "disturb",
)
NETWORKS = (
    "alexnet",
    "vgg16_bn",
    "googlenet",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "squeezenet1_1",
    "mobilenet_v2",
    "efficientnet_b0",
)
MEDMNIST = (
    "bloodmnist",
    "breastmnist",
    "dermamnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
    "pathmnist",
    "pneumoniamnist",
    "retinamnist",
    "tissuemnist",
)
PHANTOMS = ("phantom-ultrasound", "phantom-fundus", "phantom-xray", "phantom-dermatoscopy")
MEASUREMENTS = ["entropy", "margin", "least_confidence", "energy", "mutual_information"]
"""What a setting may name; ``diffusion.guidance.register_measurement`` adds to it."""
MEMBER_MEASUREMENTS = ["mutual_information"]
"""Those that compare the guide's answers under dropout masks: they need ``guide.dropout``."""
Task = Literal["binary", "multiclass", "ordinal"]
ReferenceFault = Literal[
    "guide_timesteps",
    "alignment",
    "label_dropout",
    "clip",
    "uint8",
    "measurement",
    "rank_seeds",
]
REFERENCE_FAULTS: tuple[ReferenceFault, ...] = get_args(ReferenceFault)
"""Faults of the paper's published code that can be switched on; docs/reference.md explains each."""

T = TypeVar("T")
Positive = Annotated[int, Field(gt=0)]
Network = Annotated[str, AfterValidator(lambda v: require_known(v, "network", NETWORKS))]
MeasurementName = Annotated[
    str, AfterValidator(lambda v: require_known(v, "measurement", MEASUREMENTS))
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class InputError(Exception):
    """The user's input is wrong: what came, what is allowed, what to do (exit code 2)."""


def require_known(value: str, what: str, known: Iterable[str]) -> str:
    """``value`` if it is among ``known``; else ValueError with a suggestion."""
    options = list(known)
    if value in options:
        return value
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(f"unknown {what} {value!r}{hint} Known: {', '.join(options)}")


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def unique(values: tuple[T, ...], what: str) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{what} {value!r} is given twice")
    return values
