"""``config.json`` of a folder of models to take away: what it holds, and reading it."""

from __future__ import annotations

import hashlib
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

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
DENOISER_FILE = "denoiser.safetensors"
GUIDE_FILE = "guide.safetensors"
MAX_CONFIG_BYTES = 1_000_000


class Normalisation(Frozen):
    """Pixels as the networks take and give them."""

    minimum: Literal[-1] = -1
    maximum: Literal[1] = 1
    from_uint8: Literal["x / 127.5 - 1"] = "x / 127.5 - 1"
    layout: Literal["NCHW float32"] = "NCHW float32"


class TrainingData(Frozen):
    """What the models were trained on."""

    name: str
    source: str
    """The dataset that ``name`` is a variant of, or itself."""
    task: Task
    licence: str
    citation: str
    images_per_class: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images, in the order of ``classes``."""
    pictures: bool
    """Whether the study was told that its images may be shown."""


class Weights(Frozen):
    """One file of weights, and where it comes from."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    key: str = Field(pattern="^[a-z0-9_]{1,64}$")
    """Of the artefact it was copied from."""
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
    """Versions of packages, and the commit."""
    study: str
    data: TrainingData
    classes: tuple[str, ...] = Field(min_length=2, max_length=4096)
    """In the order of the labels: ``classes[k]`` names label k."""
    image_size: int = Field(ge=8, le=512)
    channels: Literal[1, 3]
    normalisation: Normalisation = Normalisation()
    num_train_timesteps: Literal[1000] = 1000
    denoiser: DenoiserFile
    guide: GuideFile | None
    """None where the study has none."""
    sampling: SamplingConfig
    """Stage 1 and the grid, as the study's arm ``disturb`` has them."""
    setting: GuidanceSetting | None
    """Stage 2: what the search chose, or the study gave; None without a guide."""
    seed: int = Field(ge=0)
    """The study's: image i of it is image i of the study's own, where its label is the same."""
    reference: tuple[ReferenceFault, ...] = ()
    """Faults of the published code that the study reproduced on purpose."""

    def described(self, config: DenoiserConfig | GuideConfig) -> dict[str, Any]:
        """As ``model.json`` of an artefact has it."""
        return {
            "config": config,
            "shape": [self.channels, self.image_size, self.image_size],
            "num_classes": len(self.classes),
        }


def read_models_file(folder: Path) -> ModelsFile:
    """Raises InputError where there is none, or not one of ours."""
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; not one of ours")
        return ModelsFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {place or 'it'}: {first['msg']}; it is damaged or of another version: export "
            "the models again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a folder that "
            "'python -m mgdm_ray.sample ... --export FOLDER' wrote"
        ) from error


def checked_weights(folder: Path, name: str, expected: Weights) -> Path:
    """The path of a file of weights. InputError where it is not the one that was written."""
    path = folder / name
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); copy the folder whole"
        ) from error
    if found != expected.sha256:
        raise InputError(
            f"{path}: is not the file that was written beside {CONFIG_FILE} (another checksum); "
            "copy the folder again, or export the models again"
        )
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
