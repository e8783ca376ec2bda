"""Known names, strict models, and errors with suggestions, for all parts of the study file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypeAliasType

Arm = Literal["real", "augment", "duplicate", "generate", "roundtrip", "perturb", "disturb"]
ARMS: tuple[Arm, ...] = get_args(Arm)
DEFAULT_ARMS: tuple[Arm, ...] = tuple(arm for arm in ARMS if arm != "augment")
"""By default every arm is augmented."""
SampledArm = Literal["generate", "roundtrip", "perturb", "disturb"]
SAMPLED_ARMS: tuple[SampledArm, ...] = get_args(SampledArm)
"""Arms whose images a diffusion model makes."""
GUIDED_ARMS: tuple[SampledArm, ...] = ("perturb", "disturb")
"""Arms with a guidance setting in stage 2."""
NETWORKS = tuple(
    """
    alexnet vgg16_bn googlenet resnet18 resnet50 resnext50_32x4d densenet121 squeezenet1_1
    mobilenet_v2 efficientnet_b0
    """.split()
)
TORCHVISION = tuple(Path(__file__).with_name("torchvision.txt").read_text().split())
"""torchvision's classification models; a test compares them with torchvision."""
MEDMNIST = tuple(
    """
    bloodmnist breastmnist dermamnist octmnist organamnist organcmnist organsmnist pathmnist
    pneumoniamnist retinamnist tissuemnist
    """.split()
)
PHANTOMS = ("phantom-ultrasound", "phantom-fundus", "phantom-xray", "phantom-dermatoscopy")
MEASUREMENTS = ["entropy", "margin", "least_confidence", "energy", "mutual_information"]
"""Known measurements; ``diffusion.guidance.register_measurement`` adds to them."""
MEMBER_MEASUREMENTS = ["mutual_information"]
"""Measurements over dropout masks of the guide; they need ``guide.dropout``."""
Task = Literal["binary", "multiclass", "ordinal"]
ReferenceFault = Literal[
    "guide_timesteps", "alignment", "label_dropout", "clip", "uint8", "measurement", "rank_seeds"
]
REFERENCE_FAULTS: tuple[ReferenceFault, ...] = get_args(ReferenceFault)
"""Faults of the paper's published code, off by default: docs/reference.md."""

T = TypeVar("T")
Positive = Annotated[int, Field(gt=0)]
TIMM = "timm/"
"""Prefix of timm's networks."""
TIMM_NAME = r"[A-Za-z0-9_.]+"

Network = TypeAliasType(
    "Network",
    Annotated[
        str,
        AfterValidator(lambda v: known_network(v)),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": list(TORCHVISION)},
                    {"type": "string", "pattern": f"^{TIMM}{TIMM_NAME}$"},
                ]
            }
        ),
    ],
)
MeasurementName = TypeAliasType(
    "MeasurementName",
    Annotated[
        str,
        AfterValidator(lambda v: require_known(v, "measurement", MEASUREMENTS)),
        # Users may register more.
        WithJsonSchema({"anyOf": [{"enum": list(MEASUREMENTS)}, {"type": "string"}]}),
    ],
)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class InputError(Exception):
    """Wrong input: what came, what is allowed, what to do (exit code 2)."""


def require_known(value: str, what: str, known: Iterable[str], listed: str = "") -> str:
    """Return ``value`` if it is in ``known``; else raise ValueError with the closest of them.

    ``listed`` replaces a list of all of ``known`` in the message.
    """
    options = list(known)
    if value in options:
        return value
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(f"unknown {what} {value!r}{hint} Known: {listed or ', '.join(options)}")


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def distinct(what: str, key: str = "") -> AfterValidator:
    """For a field's annotation: refuse a tuple with a ``what`` (its attribute ``key``) twice."""

    def checked(values: tuple[T, ...]) -> tuple[T, ...]:
        unique(tuple(getattr(v, key) if key else v for v in values), what)
        return values

    return AfterValidator(checked)


def unique(values: tuple[T, ...], what: str) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{what} {value!r} is given twice")
    return values


def known_network(name: str) -> str:
    """Return ``name`` if torchvision has it or it begins with ``timm/``; else ValueError.

    ``classifiers.weights.require_timm`` looks it up in timm, whose import takes seconds.
    """
    if not name.startswith(TIMM):
        also = f"any other classification model of torchvision; or {TIMM}NAME"
        return require_known(name, "network", TORCHVISION, f"{', '.join(NETWORKS)}; {also}")
    if not re.fullmatch(TIMM_NAME, name.removeprefix(TIMM)):
        raise ValueError(
            f"unknown network {name!r}: after {TIMM!r} comes a name of timm.list_models()"
        )
    return name
