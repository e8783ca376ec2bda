"""The Python interface: load a study's models, make images, save them (docs/take-away.md).

Reads safetensors and JSON only. Wrong or damaged files raise InputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
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
)
from mgdm_ray.data.load import to_uint8
from mgdm_ray.diffusion.guidance import register_measurement as register_measurement
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import NoiseSchedule
from mgdm_ray.pipeline.tasks.base import WEIGHTS
from mgdm_ray.pipeline.tasks.models import denoiser_from, guide_from
from mgdm_ray.results.export.finished import known_name, label_of, mistakes
from mgdm_ray.results.export.labelled_folder import SYNTHETIC, save_png
from mgdm_ray.results.export.models_file import (
    CONFIG_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    ModelsFile,
    checked_weights,
    read_models_file,
    small_json,
)


@dataclass(frozen=True)
class Denoiser:
    """A trained diffusion model."""

    network: torch.nn.Module
    """``network(x_t [N, C, H, W], t int64 [N], class_labels=y int64 [N])`` gives the
    ``prediction`` of ``config``; label ``len(classes)`` is the null label."""
    config: DenoiserConfig
    schedule: NoiseSchedule
    classes: tuple[str, ...]
    """``classes[k]`` names label k; "0", "1", ... for an artefact, which has no class names."""
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    sampling: SamplingConfig
    """Stage 1 and the timestep grid of its study; the defaults for an artefact."""


@dataclass(frozen=True)
class Guide:
    """A trained classifier of noisy images."""

    network: torch.nn.Module
    """``network(x_t [N, C, H, W], t int64 [N]) -> logits [N, K]``."""
    config: GuideConfig
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(folder: str | Path, device: str = "cpu") -> Denoiser:
    """Load the denoiser in ``folder``: written by ``mgdm_ray.sample --export``, or an artefact
    (STORAGE/artifacts/fit_denoiser/KEY). Raises InputError if it is neither, or damaged."""
    folder = Path(folder).expanduser()
    models = _exported(folder)
    if models:
        weights = checked_weights(folder, DENOISER_FILE, models.denoiser)
        found = denoiser_from(models.described(models.denoiser.config), weights, device)
        names, sampling = models.classes, models.sampling
    else:
        found = denoiser_from(_artefact(folder, "fit_denoiser"), folder / WEIGHTS, device)
        names, sampling = tuple(map(str, range(found.num_classes))), SamplingConfig()
    return Denoiser(found.model, found.config, found.schedule, names, found.shape, sampling)


def load_guide(folder: str | Path, device: str = "cpu") -> Guide:
    """Load the guide in ``folder``; as ``load_denoiser`` (STORAGE/artifacts/fit_guide/KEY)."""
    folder = Path(folder).expanduser()
    models = _exported(folder)
    if models and models.guide is None:
        raise InputError(f"{folder}: has no guide, because study {models.study} trained none")
    if models and models.guide:
        weights = checked_weights(folder, GUIDE_FILE, models.guide)
        found = guide_from(models.described(models.guide.config), weights, device)
    else:
        found = guide_from(_artefact(folder, "fit_guide"), folder / WEIGHTS, device)
    return Guide(found.model, found.config, found.num_classes, found.shape)


def _exported(folder: Path) -> ModelsFile | None:
    return read_models_file(folder) if (folder / CONFIG_FILE).exists() else None


def _artefact(folder: Path, kind: str) -> dict[str, Any]:
    """``model.json`` of an artefact of this kind."""
    try:
        manifest, facts = (small_json(folder / name) for name in ("manifest.json", "model.json"))
        found = manifest["kind"]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(
            f"{folder}: contains no models ({type(error).__name__}: {error}); give a folder "
            "written by 'python -m mgdm_ray.sample ... --export FOLDER', or an artefact of a study"
        ) from error
    if found != kind:
        raise InputError(f"{folder}: is an artefact of kind {found!r}; give one of kind {kind!r}")
    return facts


class SamplingOptions(TypedDict, total=False):
    """The keyword-only arguments of ``two_stage``."""

    arm: SampledArm | None
    """Default: ``disturb`` with a setting, else ``roundtrip``. ``generate`` is stage 1 alone,
    ``perturb`` a random direction as strong as the guidance."""
    first: int
    """Index of the first image, default 0."""
    sampling: SamplingConfig | None
    """Stage 1 and the timestep grid, default the denoiser's. ``classifier_scale`` needs a guide."""
    device: str
    """Where the models are, default "cpu"."""


def two_stage(
    denoiser: Denoiser,
    guide: Guide | None,
    labels: Sequence[int | str],
    setting: GuidanceSetting | Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Unpack[SamplingOptions],
) -> torch.Tensor:
    """Sample images float32 `[M, C, H, W]` in [-1, 1] of ``labels``: generate, encode, and decode
    under measurement guidance.

    ``labels``: numbers or names of ``denoiser.classes``. ``setting``: keys of a study's
    ``setting`` (``measurement``, ``uncertainty_scale``, ...); None: round trip without guidance.
    ``options``: ``arm``, ``first``, ``sampling``, ``device`` (``SamplingOptions``).

    Image m has index ``first`` + m. It is a function of models, label, setting, ``sampling``,
    ``seed`` and index, up to the round-off of other batches; with the study's seed and labels it
    is the study's own image.

    Raises InputError for labels, settings and models that do not fit, and
    ``diffusion.pipeline.NonFiniteSample`` if the guidance is too strong.
    """
    if unknown := sorted(options.keys() - SamplingOptions.__annotations__):
        raise TypeError(f"two_stage() got an unexpected keyword argument {unknown[0]!r}")
    arm = options.get("arm") or ("roundtrip" if setting is None else "disturb")
    config, first = options.get("sampling") or denoiser.sampling, options.get("first", 0)
    known, numbers = _setting(setting), _labels(labels, denoiser.classes)
    _require_fit(arm, denoiser, guide, known, config)
    if seed < 0 or first < 0:
        raise InputError(f"seed and first must not be negative; got {seed} and {first}")
    trained = TrainedDenoiser(
        denoiser.network, denoiser.config, denoiser.schedule, len(denoiser.classes), denoiser.shape
    )
    execution = Execution(options.get("device", "cpu"), compile="never")
    sampler = Sampler(trained, guide.network if guide else None, config, execution, seed=seed)
    indices = range(first, first + len(numbers))
    made = sampler.make(arm, torch.tensor(numbers, dtype=torch.int64), indices, known)
    return made.clamp(-1, 1)


def _setting(given: GuidanceSetting | Mapping[str, Any] | None) -> GuidanceSetting | None:
    if isinstance(given, Mapping):
        for name in given:
            known_name("setting", name, "key", GuidanceSetting.model_fields)
        try:
            given = GuidanceSetting.model_validate(dict(given))
        except ValidationError as error:
            raise InputError(mistakes(error, "setting.")) from None
    if given is not None and given.interval == "auto":
        raise InputError(
            "setting.interval: 'auto' is chosen while a study runs; give [first, last]"
        )
    return given


def _labels(given: Sequence[int | str], classes: tuple[str, ...]) -> list[int]:
    if isinstance(given, str) or len(given) == 0:
        raise InputError(f"labels: got {given!r}; give a list with one label per image")
    return [label_of(value, classes) for value in given]


def _require_fit(
    arm: str,
    denoiser: Denoiser,
    guide: Guide | None,
    setting: GuidanceSetting | None,
    config: SamplingConfig,
) -> None:
    """InputError if arm, models and setting do not fit together."""
    known_name("arm", arm, "arm", SAMPLED_ARMS)
    guided = arm in GUIDED_ARMS
    if guided and setting is None:
        raise InputError(f"arm {arm!r} needs a setting, e.g. {{'uncertainty_scale': 0.1}}")
    if not guided and setting is not None:
        raise InputError(f"arm {arm!r} is not guided in stage 2: do not give a setting")
    scale = setting.uncertainty_scale if guided and setting else 0
    if (config.classifier_scale != 0 or scale != 0) and guide is None:
        raise InputError("guidance needs a guide: load_guide(FOLDER)")
    if guide and (guide.num_classes, guide.shape[0]) != (len(denoiser.classes), denoiser.shape[0]):
        raise InputError(
            f"guide and denoiser are from different studies: {guide.num_classes} classes and "
            f"{guide.shape[0]} channels against {len(denoiser.classes)} and {denoiser.shape[0]}"
        )


def save_images(images: torch.Tensor, folder: str | Path) -> list[Path]:
    """Write ``images`` `[M, C, H, W]` in [-1, 1] as ``000000.png``, ...; return their paths.

    Creates ``folder`` if needed; raises InputError if one of the files exists. The metadata mark
    the images as synthetic; ``python -m mgdm_ray.sample`` also records labels and origin.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.png" for number in range(len(images))]
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists already; give a new or empty folder")
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        save_png(path, pixels, SYNTHETIC)
    return paths
