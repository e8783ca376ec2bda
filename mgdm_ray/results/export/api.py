"""What a program may call: load the models of a study, make images, save them (docs/take-away.md).

Only safetensors and JSON are read. A file that is wrong or damaged is an InputError that says what
to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import ValidationError

from mgdm_ray.config import (
    GUIDED_ARMS,
    SAMPLED_ARMS,
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    InputError,
    SampledArm,
    SamplingConfig,
    require_known,
)
from mgdm_ray.data.load import to_uint8
from mgdm_ray.diffusion.guidance import register_measurement
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import NoiseSchedule
from mgdm_ray.pipeline.tasks.base import WEIGHTS
from mgdm_ray.pipeline.tasks.models import denoiser_from, guide_from
from mgdm_ray.results.export.labelled_folder import SYNTHETIC, png_text
from mgdm_ray.results.export.models_file import (
    CONFIG_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    MAX_CONFIG_BYTES,
    checked_weights,
    read_models_file,
)

__all__ = [
    "Denoiser",
    "Guide",
    "load_denoiser",
    "load_guide",
    "register_measurement",
    "save_images",
    "two_stage",
]

MODEL_FILE = "model.json"


@dataclass(frozen=True)
class Denoiser:
    """A trained diffusion model."""

    network: torch.nn.Module
    """``network(x_t [N, C, H, W], t int64 [N], class_labels=y int64 [N])``, the ``prediction`` of
    ``config``; label ``len(classes)`` means no label."""
    config: DenoiserConfig
    schedule: NoiseSchedule
    classes: tuple[str, ...]
    """``classes[k]`` names label k; of an artefact, whose names are not known, "0", "1", ..."""
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    sampling: SamplingConfig
    """Stage 1 and the grid of its study; of an artefact the defaults."""


@dataclass(frozen=True)
class Guide:
    """A trained classifier of noisy images."""

    network: torch.nn.Module
    """``network(x_t [N, C, H, W], t int64 [N]) -> logits [N, K]``."""
    config: GuideConfig
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(folder: str | Path, device: str = "cpu") -> Denoiser:
    """The denoiser in ``folder``: one that ``mgdm_ray.sample --export`` wrote, or an artefact
    (STORAGE/artifacts/fit_denoiser/KEY). Raises InputError where it is neither, or damaged."""
    folder = Path(folder).expanduser()
    if (folder / CONFIG_FILE).exists():
        models = read_models_file(folder)
        weights = checked_weights(folder, DENOISER_FILE, models.denoiser)
        facts = models.described(models.denoiser.config)
        classes, sampling = models.classes, models.sampling
    else:
        facts, weights = _artefact(folder, "fit_denoiser"), folder / WEIGHTS
        classes, sampling = (), SamplingConfig()
    found = denoiser_from(facts, weights, device)
    names = classes or tuple(str(label) for label in range(found.num_classes))
    return Denoiser(found.model, found.config, found.schedule, names, found.shape, sampling)


def load_guide(folder: str | Path, device: str = "cpu") -> Guide:
    """The guide in ``folder``; as ``load_denoiser`` (STORAGE/artifacts/fit_guide/KEY)."""
    folder = Path(folder).expanduser()
    if (folder / CONFIG_FILE).exists():
        models = read_models_file(folder)
        if models.guide is None:
            raise InputError(f"{folder}: holds no guide, for its study {models.study} has none")
        weights = checked_weights(folder, GUIDE_FILE, models.guide)
        facts = models.described(models.guide.config)
    else:
        facts, weights = _artefact(folder, "fit_guide"), folder / WEIGHTS
    found = guide_from(facts, weights, device)
    return Guide(found.model, found.config, found.num_classes, found.shape)


def _artefact(folder: Path, kind: str) -> dict[str, Any]:
    """``model.json`` of an artefact of this kind."""
    try:
        manifest, facts = (_small_json(folder / name) for name in ("manifest.json", MODEL_FILE))
        found = manifest["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder}: is neither a folder that 'python -m mgdm_ray.sample ... --export FOLDER' "
            f"wrote nor an artefact of a study ({type(error).__name__}: {error})"
        ) from error
    if found != kind:
        raise InputError(f"{folder}: is an artefact of kind {found!r}; give one of kind {kind!r}")
    return facts


def _small_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes")
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return loaded


def two_stage(
    denoiser: Denoiser,
    guide: Guide | None,
    labels: Sequence[int | str],
    setting: GuidanceSetting | Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    arm: SampledArm | None = None,
    first: int = 0,
    sampling: SamplingConfig | None = None,
    device: str = "cpu",
) -> torch.Tensor:
    """Images float32 `[M, C, H, W]` in [-1, 1] of ``labels``: from noise, encoded, and decoded
    under measurement guidance.

    ``labels`` are numbers or names of ``denoiser.classes``. ``setting`` has the keys of a study's
    ``setting`` (``measurement``, ``uncertainty_scale``, ...); None is the round trip without
    guidance. Image m has index ``first`` + m, and is a function of models, label, setting,
    ``sampling``, ``seed`` and that index, up to the round-off of other batches: with the study's
    own seed it is the study's own image of that index, where the labels agree. ``arm`` (default:
    ``disturb`` with a setting, else ``roundtrip``) may also be ``generate``, stage 1 alone, or
    ``perturb``, a random push as strong as the guidance. ``sampling`` (default: the denoiser's)
    holds stage 1 and the grid; with a ``classifier_scale`` it needs a guide.

    Raises InputError for labels, settings and models that do not fit, and
    ``diffusion.pipeline.NonFiniteSample`` where the guidance is too strong.
    """
    arm = arm or ("roundtrip" if setting is None else "disturb")
    config = denoiser.sampling if sampling is None else sampling
    known, numbers = _setting(setting), _labels(labels, denoiser.classes)
    _require_fit(arm, denoiser, guide, known, config)
    if seed < 0 or first < 0:
        raise InputError(f"seed and first must not be negative; got {seed} and {first}")
    trained = TrainedDenoiser(
        denoiser.network, denoiser.config, denoiser.schedule, len(denoiser.classes), denoiser.shape
    )
    execution = Execution(device, compile="never")
    sampler = Sampler(trained, guide.network if guide else None, config, execution, seed=seed)
    indices = range(first, first + len(numbers))
    made = sampler.make(arm, torch.tensor(numbers, dtype=torch.int64), indices, known)
    return made.clamp(-1, 1)


def _setting(given: GuidanceSetting | Mapping[str, Any] | None) -> GuidanceSetting | None:
    if given is None or isinstance(given, GuidanceSetting):
        return given
    for name in given:
        try:
            require_known(name, "key", GuidanceSetting.model_fields)
        except ValueError as error:
            raise InputError(f"setting: {error}") from None
    try:
        return GuidanceSetting.model_validate(dict(given))
    except ValidationError as error:
        mistakes = [
            f"setting.{'.'.join(str(part) for part in e['loc'])}: "
            f"{e['msg'].removeprefix('Value error, ')}; got {e['input']!r}"
            for e in error.errors()
        ]
        raise InputError("\n".join(mistakes)) from None


def _labels(given: Sequence[int | str], classes: tuple[str, ...]) -> list[int]:
    if isinstance(given, str) or len(given) == 0:
        raise InputError(f"labels: a list with one label per image is needed; got {given!r}")
    return [label_of(value, classes) for value in given]


def label_of(value: int | str, classes: Sequence[str]) -> int:
    """The label that a name, or a number (``3`` or ``"3"``), stands for; names go first.

    Raises InputError for any other.
    """
    if isinstance(value, str):
        if value in classes:
            return classes.index(value)
        if not value.isascii() or not value.isdigit():
            try:
                require_known(value, "class", classes)
            except ValueError as error:
                raise InputError(f"label: {error}") from None
    number = int(value)
    if not 0 <= number < len(classes):
        named = ", ".join(f"{label} {name!r}" for label, name in enumerate(classes))
        raise InputError(f"label {value} is not among the {len(classes)} classes: {named}")
    return number


def _require_fit(
    arm: str,
    denoiser: Denoiser,
    guide: Guide | None,
    setting: GuidanceSetting | None,
    config: SamplingConfig,
) -> None:
    """InputError where the arm, the models and the setting do not go together."""
    if arm not in SAMPLED_ARMS:
        raise InputError(f"arm {arm!r} is none of {', '.join(SAMPLED_ARMS)}")
    guided = arm in GUIDED_ARMS
    if guided and setting is None:
        raise InputError(f"arm {arm!r} needs a setting, e.g. {{'uncertainty_scale': 0.1}}")
    if not guided and setting is not None:
        raise InputError(f"arm {arm!r} is not guided in stage 2: give no setting")
    needed = config.classifier_scale != 0
    needed = needed or (guided and setting is not None and setting.uncertainty_scale != 0)
    if needed and guide is None:
        raise InputError("guidance needs a guide: load_guide(FOLDER)")
    if guide and (guide.num_classes, guide.shape[0]) != (len(denoiser.classes), denoiser.shape[0]):
        raise InputError(
            f"guide and denoiser are not of one study: the guide knows {guide.num_classes} classes "
            f"in images of {guide.shape[0]} channels, the denoiser {len(denoiser.classes)} in "
            f"{denoiser.shape[0]}"
        )


def save_images(images: torch.Tensor, folder: str | Path) -> list[Path]:
    """Write ``images`` `[M, C, H, W]` in [-1, 1] as ``000000.png``, ... and return their paths.

    ``folder`` is made where it is not there; raises InputError where such a file is there already.
    Their metadata say that they are synthetic; ``python -m mgdm_ray.sample`` writes labelled
    folders that also say from what.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.png" for number in range(len(images))]
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: is there already; give a folder that is new or empty")
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(path, pnginfo=png_text(SYNTHETIC))
    return paths
