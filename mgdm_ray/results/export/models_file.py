"""``config.json`` of exported models: its fields, and reading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mgdm_ray.config import (
    DenoiserConfig,
    Frozen,
    GuidanceSetting,
    GuideConfig,
    InputError,
    ReferenceFault,
    SamplingConfig,
    Task,
)
from mgdm_ray.storage.store import sha256_of

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
DENOISER_FILE = "denoiser.safetensors"
GUIDE_FILE = "guide.safetensors"
MAX_CONFIG_BYTES = 1_000_000


class Normalisation(Frozen):
    """Pixel values as the networks take and give them."""

    minimum: Literal[-1] = -1
    maximum: Literal[1] = 1
    from_uint8: Literal["x / 127.5 - 1"] = "x / 127.5 - 1"
    layout: Literal["NCHW float32"] = "NCHW float32"


class TrainingData(Frozen):
    """What the models were trained on."""

    name: str
    source: str
    """The dataset that ``name`` is a variant of, or ``name`` itself."""
    task: Task
    licence: str
    citation: str
    images_per_class: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images, in the order of ``classes``."""
    pictures: bool
    """Whether the study allows its images to be shown."""


class Weights(Frozen):
    """A file of weights and the artefact it was copied from."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    key: str = Field(pattern="^[a-z0-9_]{1,64}$")
    parameters: int = Field(ge=0)


class DenoiserFile(Weights):
    config: DenoiserConfig
    """Architecture, noise schedule, prediction type and recipe."""


class GuideFile(Weights):
    config: GuideConfig


class ModelsFile(Frozen):
    """All of ``config.json``."""

    format: Literal["mgdm-ray models"] = "mgdm-ray models"
    format_version: Literal[1] = 1
    written_by: dict[str, str | None]
    """Package versions and git commit."""
    study: str
    data: TrainingData
    classes: tuple[str, ...] = Field(min_length=2, max_length=4096)
    """``classes[k]`` names label k."""
    image_size: int = Field(ge=8, le=512)
    channels: Literal[1, 3]
    normalisation: Normalisation = Normalisation()
    num_train_timesteps: Literal[1000] = 1000
    denoiser: DenoiserFile
    guide: GuideFile | None
    """None if the study has none."""
    sampling: SamplingConfig
    """Stage 1 and the timestep grid of the arm ``disturb``."""
    setting: GuidanceSetting | None
    """Stage 2: from the search, or from the study file; None without a guide."""
    seed: int = Field(ge=0)
    """The study's; with it, image i of the same label is the study's own image i."""
    reference: tuple[ReferenceFault, ...] = ()
    """Faults of published code that the study reproduced on purpose."""

    def described(self, config: DenoiserConfig | GuideConfig) -> dict[str, Any]:
        """The fields of an artefact's ``model.json``."""
        return {
            "config": config,
            "shape": [self.channels, self.image_size, self.image_size],
            "num_classes": len(self.classes),
        }


def small_json(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError or RecursionError if it is not a small JSON mapping."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes")
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} is not a mapping")
    return loaded


def read_models_file(folder: Path) -> ModelsFile:
    """Raises InputError if there is none, or if it is damaged or of another format."""
    path = folder / CONFIG_FILE
    try:
        return ModelsFile.model_validate(small_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: {place}: {first['msg']}; it is damaged or of another version: export the "
            "models again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a folder written by "
            "'python -m mgdm_ray.sample ... --export FOLDER'"
        ) from error


def checked_weights(folder: Path, name: str, expected: Weights) -> Path:
    """The path of a file of weights; InputError if its checksum differs from ``expected``."""
    path = folder / name
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); copy the whole folder"
        ) from error
    if found != expected.sha256:
        raise InputError(
            f"{path}: its checksum differs from the one in {CONFIG_FILE}; copy the folder again, "
            "or export the models again"
        )
    return path
