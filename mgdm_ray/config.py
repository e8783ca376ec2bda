"""The study file: frozen pydantic models, unknown keys refused, one docstring per field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

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


class PhantomConfig(Frozen):
    """How a ``phantom-*`` dataset is drawn."""

    difficulty: float = Field(0.5, ge=0, le=1)
    """0: lesions stand out; 1: they drown in noise and confounders."""
    train: int = Field(400, ge=20, le=100_000)
    """Number of training images."""
    val: int = Field(120, ge=10, le=100_000)
    """Number of validation images."""
    test: int = Field(200, ge=10, le=100_000)
    """Number of test images."""
    imbalance: float = Field(1.0, ge=1, le=100)
    """Most frequent class over rarest class; 1 is balanced. Geometric in between."""
    seed: int = Field(0, ge=0)
    """Another seed draws another dataset."""


class DatasetConfig(Frozen):
    """One dataset of the study."""

    name: Name
    """A MedMNIST name, a ``phantom-*`` name, or any name of your own together with ``path``."""
    path: str | None = None
    """A MedMNIST-format .npz of your own, relative to ``data_dir`` or absolute."""
    task: Task | None = None
    """Kind of labels of your own .npz; known for the named datasets."""
    size: int = Field(28, ge=8, le=512)
    """Height and width in pixels."""
    train_size: int | None = Field(None, ge=10)
    """Use at most so many training images: a seeded, stratified choice. Default: all."""
    phantom: PhantomConfig | None = None
    """Only for ``phantom-*``."""

    @model_validator(mode="after")
    def _source(self) -> Self:
        if self.path is None:
            require_known(self.name, "dataset", (*MEDMNIST, *PHANTOMS))
        elif self.name in (*MEDMNIST, *PHANTOMS):
            raise ValueError(
                f"{self.name!r} is a built-in dataset: give your own path another name"
            )
        if self.name in PHANTOMS and self.phantom is None:
            object.__setattr__(self, "phantom", PhantomConfig())
        if self.phantom is not None and self.name not in PHANTOMS:
            raise ValueError("'phantom' is only for phantom-* datasets")
        if self.path is None and self.task is not None:
            raise ValueError("'task' is only for a dataset with 'path': built-in tasks are known")
        return self


class UNetConfig(Frozen):
    """Size of a UNet (denoiser) or UNet encoder (guide)."""

    channels: tuple[Positive, ...] = (32, 64, 96)
    """Channels per level; each further level halves the resolution."""
    attention: tuple[bool, ...] = (False, False, True)
    """Self-attention per level."""
    num_res_blocks: Positive = 1
    """Residual blocks per level."""

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(
                f"'channels' has {len(self.channels)} levels and 'attention' {len(self.attention)}"
            )
        bad = [c for c in self.channels if c % 16]
        if bad:
            raise ValueError(f"channels must be multiples of 16 (group norm, heads); got {bad}")
        return self


class TrainConfig(Frozen):
    """What denoiser and guide have in common."""

    unet: UNetConfig = UNetConfig()
    steps: Positive = 600
    """Optimiser steps."""
    batch_size: Positive = 64
    """Global batch: split over the workers."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of AdamW."""
    warmup: int = Field(50, ge=0)
    """Steps of linear warm-up."""
    decay: bool = True
    """Cosine decay of the learning rate to zero at the last step."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null does not clip."""
    class_balanced: bool = True
    """Draw every class equally often."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints: what a kill can cost at most."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where that is faster: on GPUs that have it, CPUs with AMX,
    and AMD's with AVX512_BF16."""


RECIPES: dict[str, dict[str, Any]] = {
    "small": {
        "schedule": "cosine",
        "prediction": "v",
        "loss_weight": "uniform",
        "learning_rate": 1e-3,
        "warmup": 50,
        "decay": True,
        "grad_clip": 1.0,
        "class_balanced": True,
    },
    "paper": {
        "schedule": "linear",
        "prediction": "epsilon",
        "loss_weight": "mgdm",
        "learning_rate": 1e-4,
        "warmup": 0,
        "decay": False,
        "grad_clip": None,
        "class_balanced": False,
    },
}


class DenoiserConfig(TrainConfig):
    """The class-conditional diffusion model. ``recipe`` sets defaults of the fields it names."""

    recipe: Literal["small", "paper"] = "small"
    """Named defaults, DESIGN section 2."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise schedule over 1000 training timesteps."""
    prediction: Literal["epsilon", "v"] = "v"
    """What the network predicts."""
    loss_weight: Literal["uniform", "mgdm", "min_snr"] = "uniform"
    """``mgdm``: w_t = sqrt(1 - alphas_cumprod); ``min_snr``: that of Hang et al. with gamma 5."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples trained without label, drawn per sample: for classifier-free guidance."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the exponential moving average of the weights (with warm-up)."""

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            recipe = data.get("recipe", "small")
            if recipe in RECIPES:
                return {**RECIPES[recipe], **data}
        return data


class GuideConfig(TrainConfig):
    """The noisy classifier p(y | x_t, t)."""

    steps: Positive = 300
    """Optimiser steps."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the head's features left out while training; ``mutual_information`` needs some."""


class SamplingConfig(Frozen):
    """Stage 1 (generate) and the DDIM grids of all stages."""

    num_inference_steps: int = Field(25, ge=2, le=1000)
    """Steps of generate, encode and decode."""
    solver: Literal["ddim", "second_order"] = "ddim"
    """Of stage 1. ``second_order`` needs fewer steps for the same error; encode and decode are
    always DDIM, so that they mirror each other."""
    inversion_iterations: int = Field(0, ge=0, le=20)
    """More forwards per step of encode, so that decoding without guidance gives the image back.
    Needs ``denoiser.prediction: v``."""
    strength: float = Field(1.0, gt=0, le=1)
    """How far into the noise encode goes, as a share of the timesteps: less keeps more of the
    image."""
    guidance_scale: float = Field(1.5, ge=0, le=50)
    """Classifier-free guidance of stage 1; 1 is off."""
    classifier_scale: float = Field(0.0, ge=0, le=1000)
    """Classifier guidance of stage 1; 0 is off."""
    clip: bool = True
    """Clip pred_x0 to [-1, 1] while generating."""
    clip_stage_two: bool = False
    """Clip pred_x0 in encode and decode, in both; needs ``clip``. Off: what leaves [-1, 1] on the
    way comes back."""
    batch_size: Positive | Literal["auto"] = "auto"
    """Images per forward pass; ``auto``: as many as memory allows. Does not change the result."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where that is faster: on GPUs that have it, CPUs with AMX,
    and AMD's with AVX512_BF16."""

    @model_validator(mode="after")
    def _clipping(self) -> Self:
        if self.clip_stage_two and not self.clip:
            raise ValueError(
                "'clip_stage_two' needs 'clip': encode would blow up what an image has outside "
                "[-1, 1], by the ratio of the noise levels"
            )
        return self


class SyntheticConfig(Frozen):
    """How many images the arms add."""

    ratio: float = Field(1.0, gt=0, le=100)
    """Added images per real training image."""
    balance: Literal["proportional", "balanced"] = "proportional"
    """Classes of the added images: as in the training set, or equally many of each."""


class GuidanceControls(Frozen):
    """How a measurement is ascended, whatever it is and however strong."""

    gradient: Literal["normalised", "relative", "raw"] = "normalised"
    """``normalised``: gamma is how far an image may be moved, as root mean square over its pixels
    in [-1, 1] (times pi / 2): the same for every dataset; ``relative``: the term is gamma times as
    long as eps, image by image, and near pure noise moves pred_x0 by about
    gamma / sqrt(alpha_bar), up to 160 gamma; ``raw``: the published formula."""
    over_t: Literal["constant", "signal", "noise"] = "constant"
    """Gamma over the timesteps: times 1, sqrt(alpha_bar_t) (less where there is noise) or
    sqrt(1 - alpha_bar_t) (less near the clean image)."""
    decode_guidance_scale: float = Field(1.0, ge=0, le=50)
    """Classifier-free guidance of stage 2; 1 is off. Encode never has it, nor has ``roundtrip``:
    with another value decoding changes images even where nothing is ascended."""
    label_scale: float = Field(0.0, ge=0, le=1000)
    """Weight of log p(y | x_t) beside the measurement: keeps images in their class; 0 is off."""
    interval: tuple[Annotated[int, Field(ge=0, le=999)], Annotated[int, Field(ge=0, le=999)]] = (
        0,
        999,
    )
    """First and last timestep (0 is clean, 999 is noise) at which guidance acts."""

    @field_validator("interval")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"the first timestep is after the last one: {list(value)}")
        return value


class GuidanceSetting(GuidanceControls):
    """Measurement guidance of stage 2."""

    measurement: MeasurementName = "entropy"
    """What is ascended: a registered measurement."""
    uncertainty_scale: float = Field(0.1, ge=0, le=1e6)
    """Strength (gamma); 0 is off."""


class ScaleRange(Frozen):
    """An interval that is searched."""

    low: float = Field(gt=0, le=1e6)
    high: float = Field(gt=0, le=1e6)
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
    """What is searched differently for one measurement."""

    uncertainty_scale: ScaleRange
    """Stage-2 strength of trials with this measurement."""


class SearchSpace(GuidanceControls):
    """What the search may choose. Lists are categorical: their samples and latents are reused.

    The controls are the same for all trials.
    """

    guidance_scale: tuple[Annotated[float, Field(ge=0, le=50)], ...] | None = Field(
        None, min_length=1
    )
    """Stage-1 classifier-free scales; default: only ``sampling.guidance_scale``."""
    classifier_scale: tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None = Field(
        None, min_length=1
    )
    """Stage-1 classifier scales; default: only ``sampling.classifier_scale``."""
    measurement: tuple[MeasurementName, ...] = Field(("entropy", "least_confidence"), min_length=1)
    """Stage-2 measurements. Of the two that are equal for two classes, one is dropped there."""
    uncertainty_scale: ScaleRange = ScaleRange(low=0.02, high=0.5)
    """Stage-2 strength."""
    per_measurement: dict[MeasurementName, MeasurementSpace] = {}
    """Other ranges for some of the measurements: an optimum of one says little of another's."""

    @field_validator("measurement")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return unique(value, "measurement")

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
    """A setting that is tried before the sampler suggests any."""

    measurement: MeasurementName
    """One of ``space.measurement``. Over two classes, where several are one direction and only
    one is tried, a point with another one is passed over."""
    uncertainty_scale: float = Field(gt=0, le=1e6)
    """Within the range of ``space``."""
    guidance_scale: float | None = Field(None, ge=0, le=50)
    """One of ``space.guidance_scale``; needed where there are several."""
    classifier_scale: float | None = Field(None, ge=0, le=1000)
    """One of ``space.classifier_scale``; needed where there are several."""


class ConfirmConfig(Frozen):
    """Settings that are scored once more after a search, on validation data with fresh seeds."""

    settings: int = Field(6, ge=1, le=1000)
    """How many: the chosen one, and others evenly spread over the ranks of the finished trials.
    Fewer than 5 cannot say whether the proxy networks rank for the others."""
    seeds: int = Field(3, ge=1, le=1000)
    """Fresh seeds per setting and network."""


class SearchConfig(Frozen):
    """Ray Tune + Optuna over guidance settings, scored on validation data only."""

    trials: int = Field(12, ge=1, le=100_000)
    """Number of settings tried per search."""
    sampler: Literal["tpe", "gp", "nsga2", "random", "grid"] = "tpe"
    """Optuna's sampler; ``grid`` spaces the strengths evenly, so that ``trials`` of them cover the
    space, in random order."""
    pruner: Literal["none", "median", "asha"] = "none"
    """Stops a trial after one of its networks: ``median`` where its mean so far is below the
    median of the finished trials (from the sixth on), ``asha`` where it is not in the upper half
    after 1, 2, 4, ... networks."""
    objective: Literal["accuracy", "accuracy_and_cost"] = "accuracy"
    """The second one also wants few forwards per image; the setting chosen in the end is the most
    accurate one. Without pruning."""
    repeats: int = Field(1, ge=1, le=100)
    """Seeds with which a trial trains each proxy network; the score is their mean."""
    start: tuple[StartPoint, ...] = ()
    """Settings to try first."""
    warm_start: Name | None = None
    """An earlier study in the same storage: per dataset, its best settings that lie in the space
    are tried first, after ``start``."""
    networks: tuple[Network, ...] = Field(("squeezenet1_1",), min_length=1)
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
    """Seed of the sampler and of the proxy networks; default: the study's. Another one is another
    search over the same models, samples and latents."""
    confirm: ConfirmConfig | None = None
    """Afterwards, how much too high the best score was, and whether the proxy networks rank
    settings as the study's other networks do; the report shows both."""
    space: SearchSpace = SearchSpace()

    @field_validator("networks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return unique(value, "network")

    @model_validator(mode="after")
    def _pruning(self) -> Self:
        if self.pruner == "none":
            return self
        if self.objective != "accuracy":
            raise ValueError(
                f"pruner {self.pruner!r} compares one score; with objective {self.objective!r} "
                "there are two: set pruner to none"
            )
        if self.per == "network" or len(self.networks) == 1:
            raise ValueError(
                f"pruner {self.pruner!r} stops a trial between its proxy networks, and there is "
                "only one: give several in 'networks' (with 'per: dataset'), or set pruner to none"
            )
        return self

    @model_validator(mode="after")
    def _start(self) -> Self:
        if len(self.start) > self.trials:
            raise ValueError(
                f"'start' has {len(self.start)} points, but there are only {self.trials} trials"
            )
        for index, point in enumerate(self.start):
            self._require_inside(index, point)
        return self

    def _require_inside(self, index: int, point: StartPoint) -> None:
        where = f"start[{index}]"
        if point.measurement not in self.space.measurement:
            raise ValueError(
                f"{where}: measurement {point.measurement!r} is not in space.measurement "
                f"{list(self.space.measurement)}"
            )
        strength = self.space.strength_of(point.measurement)
        if not strength.holds(point.uncertainty_scale):
            raise ValueError(
                f"{where}: uncertainty_scale {point.uncertainty_scale:g} is outside the space's "
                f"{strength.low:g} to {strength.high:g} for {point.measurement!r}"
            )


class DownstreamConfig(Frozen):
    """Training of the evaluated networks: the same for every arm."""

    steps: Positive = 100
    """Optimiser steps, equal for all arms."""
    batch_size: int = Field(64, ge=2)
    """Images per step."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak of the one-cycle schedule."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """AdamW's."""
    class_weighted: bool = False
    """Weight the loss by inverse class frequency of the real training set."""


class ResourcesConfig(Frozen):
    """What a job asks of Ray; never changes a key."""

    train_workers: Positive = 1
    """Ray Train workers per diffusion model (DDP)."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    cpus_per_task: float = Field(1, gt=0)
    """Sampling, trials and downstream networks."""
    gpus_per_task: float = Field(0, ge=0)
    sampling_workers: Positive = 1
    """Tasks that share the images of one sampling job, each with ``..._per_task``."""
    compile: Literal["auto", "never", "always"] = "auto"
    """torch.compile while sampling; ``auto``: where enough work is ahead to pay for it."""
    max_retries: int = Field(1, ge=0, le=100)
    """How often a job whose worker died is started again."""


TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")


class TrackingConfig(Frozen):
    """MLflow."""

    uri: str | None = None
    """An MLflow server; default: STORAGE/mlflow.db. Credentials belong in the environment
    (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), not in here."""
    experiment: Name = "mgdm-ray"

    @field_validator("uri")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if parts.scheme not in TRACKING_SCHEMES:
            raise ValueError(
                f"a tracking server's address begins with {', '.join(TRACKING_SCHEMES)}; "
                f"got {value!r}"
            )
        if parts.password is not None or (parts.username and parts.scheme.startswith("http")):
            # It would be printed, and stored in the report. Not repeated here for that reason.
            raise ValueError(
                "the address holds credentials; give them in the environment as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value


class StudyConfig(Frozen):
    """A whole study."""

    name: Name
    """Names the folder of results and the MLflow parent run."""
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    """Names, or mappings with more options."""
    networks: tuple[Network, ...] = Field(min_length=1)
    """Downstream networks."""
    arms: tuple[Arm, ...] = Field(ARMS, min_length=1)
    """What is compared."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """One cell per seed: initial weights and batch order. A number N means 0 .. N-1."""
    seed: int = Field(0, ge=0)
    """Seed of everything that is shared by the cells: diffusion models, samples, search."""
    image_size: int = Field(28, ge=8, le=512)
    """Size of every dataset that does not give its own."""
    data_dir: str | None = None
    """Where .npz files are; default: the environment's MGDM_DATA_DIR, else ~/.medmnist."""
    storage: str = "runs"
    """Where everything goes."""
    denoiser: DenoiserConfig = DenoiserConfig()
    guide: GuideConfig = GuideConfig()
    sampling: SamplingConfig = SamplingConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    setting: GuidanceSetting = GuidanceSetting()
    """The setting of ``disturb`` and ``perturb`` where there is no search."""
    search: SearchConfig | None = None
    """Finds the setting of ``disturb`` (and of ``perturb``, which copies its strength)."""
    downstream: DownstreamConfig = DownstreamConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    deterministic: bool = False
    """Every run of this study on this machine gives the same records to the last bit: one trial at
    a time per search, fixed batches, nothing compiled. Slower; changes no key."""
    reference: tuple[ReferenceFault, ...] = ()
    """Faults of the paper's published code to reproduce, so that their worth can be measured;
    docs/reference.md says what each does. None by default."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        out = dict(data)
        size = out.get("image_size", 28)
        if isinstance(out.get("datasets"), list | tuple):
            entries = []
            for entry in out["datasets"]:
                entry = {"name": entry} if isinstance(entry, str) else entry
                entries.append({"size": size, **entry} if isinstance(entry, Mapping) else entry)
            out["datasets"] = entries
        return out

    @field_validator("networks", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return unique(value, "network")

    @field_validator("arms")
    @classmethod
    def _arms(cls, value: tuple[Arm, ...]) -> tuple[Arm, ...]:
        return unique(value, "arm")

    @field_validator("seeds", mode="before")
    @classmethod
    def _seed_count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= 1000:
                raise ValueError(f"a number of seeds must be in 1 .. 1000; got {value}")
            return tuple(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return unique(value, "seed")

    @field_validator("datasets")
    @classmethod
    def _datasets(cls, value: tuple[DatasetConfig, ...]) -> tuple[DatasetConfig, ...]:
        unique(tuple(d.name for d in value), "dataset")
        return value

    @model_validator(mode="after")
    def _inversion(self) -> Self:
        if self.sampling.inversion_iterations and self.denoiser.prediction != "v":
            raise ValueError(
                "sampling.inversion_iterations needs denoiser.prediction 'v': with "
                f"{self.denoiser.prediction!r} the iteration diverges near pure noise"
            )
        return self

    def stage_one(self) -> list[tuple[float, float]]:
        """(guidance_scale, classifier_scale) candidates: what the search may choose from."""
        sampling = self.sampling
        space = self.search.space if self.search else None
        free = (space and space.guidance_scale) or (sampling.guidance_scale,)
        guided = (space and space.classifier_scale) or (sampling.classifier_scale,)
        return [(float(g), float(s)) for g in free for s in guided]

    def placed(self, point: StartPoint) -> StartPoint:
        """``point`` with its stage-1 scales filled in; ValueError where they are no candidate."""
        given = (point.guidance_scale, point.classifier_scale)
        found = [
            candidate
            for candidate in self.stage_one()
            if all(g is None or g == c for g, c in zip(given, candidate, strict=True))
        ]
        if len(found) != 1:
            every = ", ".join(f"{g:g} and {s:g}" for g, s in self.stage_one())
            raise ValueError(
                "guidance_scale and classifier_scale must name one of the stage-1 candidates "
                f"(here {every}); got {given[0]} and {given[1]}"
            )
        names = ("guidance_scale", "classifier_scale")
        return point.model_copy(update=dict(zip(names, found[0], strict=True)))

    @model_validator(mode="after")
    def _start_points(self) -> Self:
        for index, point in enumerate(self.search.start if self.search else ()):
            try:
                self.placed(point)
            except ValueError as error:
                raise ValueError(f"search.start[{index}]: {error}") from None
        if self.search and self.search.warm_start == self.name:
            raise ValueError(
                f"search.warm_start {self.name!r} is this study itself, whose trials would change "
                "what it has to compute; name an earlier study"
            )
        return self

    @field_validator("reference")
    @classmethod
    def _reference(cls, value: tuple[ReferenceFault, ...]) -> tuple[ReferenceFault, ...]:
        return unique(value, "fault")

    @model_validator(mode="after")
    def _faults(self) -> Self:
        if "alignment" in self.reference and self.sampling.inversion_iterations:
            raise ValueError(
                "reference 'alignment' needs sampling.inversion_iterations 0: the published "
                "encoder has none, and ends at pure noise, where a step cannot be solved backwards"
            )
        if "clip" in self.reference and self.sampling.clip_stage_two:
            raise ValueError(
                "reference 'clip' is clipping in decode alone; set sampling.clip_stage_two to false"
            )
        return self

    @model_validator(mode="after")
    def _members(self) -> Self:
        searched = () if self.search is None else self.search.space.measurement
        for name in (self.setting.measurement, *searched):
            if name in MEMBER_MEASUREMENTS and not self.guide.dropout:
                raise ValueError(
                    f"measurement {name!r} compares a guide's answers under dropout, and "
                    "guide.dropout is 0; set guide.dropout, e.g. to 0.2"
                )
        return self

    @model_validator(mode="after")
    def _batches(self) -> Self:
        workers = self.resources.train_workers
        for what, train in (("denoiser", self.denoiser), ("guide", self.guide)):
            if train.batch_size % workers:
                raise ValueError(
                    f"{what}.batch_size {train.batch_size} cannot be split over "
                    f"{workers} workers (resources.train_workers); give a multiple"
                )
        return self

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for what, unet in (("denoiser", self.denoiser.unet), ("guide", self.guide.unet)):
            factor = 2 ** (len(unet.channels) - 1)
            for dataset in self.datasets:
                if dataset.size % factor:
                    raise ValueError(
                        f"dataset {dataset.name!r} has size {dataset.size}, but {what}.unet with "
                        f"{len(unet.channels)} levels needs a multiple of {factor}"
                    )
        return self


def unique(values: tuple[T, ...], what: str) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{what} {value!r} is given twice")
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


MAX_STUDY_BYTES = 1_000_000
# The loader passes on what its constructors raise: a date that does not exist, a key that is a
# mapping.
_YAML_MISTAKES = (yaml.YAMLError, ValueError, RecursionError, TypeError)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, override (``a.b=c``) and validate a study file.

    Raises InputError with one line per mistake: place, what came, what is allowed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_STUDY_BYTES:
            raise InputError(f"{path}: larger than {MAX_STUDY_BYTES} bytes; this is no study file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    data, lines = _parse(path, text)
    for override in overrides:
        _apply(data, override)
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        places = {e["loc"][:-1] for e in errors}
        # pydantic adds "too short" to a list whose entries are wrong: noise
        errors = [e for e in errors if not (e["type"] == "too_short" and e["loc"] in places)]
        messages = [_explain(path, lines, e, overrides) for e in errors]
        raise InputError("\n".join(dict.fromkeys(messages))) from None


def _missing(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("studies")
    found = sorted(str(p) for p in folder.glob("*.yaml"))
    return f"{path}: no such file." + (f" Study files here: {', '.join(found)}" if found else "")


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML: {error.problem or error}") from None
    except _YAML_MISTAKES as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict) or node is None:
        kind = "nothing" if data is None else type(data).__name__
        raise InputError(
            f"{path}: a study file is a mapping of keys, e.g. 'name: my-study'; got {kind}"
        )
    return data, dict(_lines(node, ()))


def _lines(
    node: yaml.Node, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield place, node.start_mark.line + 1
    if len(place) > 20:  # anchors can make a cycle
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, str(key.value)), key.start_mark.line + 1
            yield from _lines_below(value, (*place, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*place, index))


def _lines_below(
    node: yaml.Node, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    # The key's own line is the place of a mapping entry, not the line where its value begins.
    return (item for item in _lines(node, place) if item[0] != place)


def _apply(data: dict[str, Any], override: str) -> None:
    """Set ``a.b.0=value`` in ``data``; the value is read as YAML."""
    where, separator, raw = override.partition("=")
    if not separator or not where.strip():
        raise InputError(f"--set {override}: give it as key.key=value")
    try:
        value = yaml.load(raw, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except _YAML_MISTAKES as error:
        raise InputError(f"--set {override}: the value is not valid YAML: {error}") from None
    *parents, last = where.strip().split(".")
    target: Any = data
    for part in parents:
        if isinstance(target, list):
            target = target[_index(override, part, target)]
        elif isinstance(target, dict):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            raise InputError(f"--set {override}: {part!r} is a single value and has no keys below")
    if isinstance(target, list):
        target[_index(override, last, target)] = value
    else:
        target[last] = value


def _index(override: str, part: str, values: list[Any]) -> int:
    if not part.isdigit() or int(part) >= len(values):
        raise InputError(f"--set {override}: {part!r} is not an index below {len(values)}")
    return int(part)


def _explain(
    path: Path,
    lines: Mapping[tuple[str | int, ...], int],
    error: Mapping[str, Any],
    overrides: Sequence[str],
) -> str:
    location = tuple(error["loc"])
    dotted = ""
    for part in location:
        dotted += f"[{part}]" if isinstance(part, int) else f".{part}" if dotted else str(part)
    flat = [str(part) for part in location]
    source = ""
    for override in overrides:
        set_here = override.partition("=")[0].strip().split(".")
        if flat[: len(set_here)] == set_here:
            source = f"--set {override}"
    if not source:
        known = location
        while known and known not in lines:
            known = known[:-1]
        source = f"{path}:{lines.get(known, 1)}"
    return f"{source}: {_what(error, location, dotted)}"


def _what(error: Mapping[str, Any], location: tuple[str | int, ...], dotted: str) -> str:
    came = repr(error.get("input"))
    came = came if len(came) <= 80 else came[:77] + "..."
    if error["type"] == "extra_forbidden":
        try:
            require_known(str(location[-1]), "key", _keys_at(location[:-1]))
        except ValueError as reason:
            return _placed(str(reason), dotted if len(location) > 1 else "")
    if error["type"] == "missing":
        return f"{dotted}: this key is required and missing"
    if error["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        try:
            require_known(str(error["input"]), "value", options)
        except ValueError as reason:
            return _placed(str(reason), dotted)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return _placed(message, dotted)
    return f"{dotted}: {message[0].lower()}{message[1:]}; got {came}"


def _placed(message: str, dotted: str) -> str:
    """``unknown network 'resnet19' in networks[2]; did you mean ...``."""
    if not dotted:
        return message
    match = re.match(r"unknown \w+ '[^']*'", message)
    if match:
        return f"{match[0]} in {dotted}{message[match.end() :]}"
    return f"{message} (in {dotted})"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys allowed at a place of the study file."""
    model: Any = StudyConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(m for m in _models(annotation))
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
