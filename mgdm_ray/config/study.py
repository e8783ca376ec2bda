"""A whole study, and what concerns all of it: networks, resources, tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mgdm_ray.config.base import (
    ARMS,
    MEMBER_MEASUREMENTS,
    Arm,
    Frozen,
    Name,
    Network,
    Positive,
    ReferenceFault,
    unique,
)
from mgdm_ray.config.data import DatasetConfig, LimitsConfig, SyntheticConfig
from mgdm_ray.config.diffusion import DenoiserConfig, GuidanceSetting, GuideConfig, SamplingConfig
from mgdm_ray.config.search import SearchConfig, StartPoint


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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where that is faster for the network at hand."""
    pretrained: str | None = None
    """Weights to start from: ``hub`` (torchvision's or timm's for ImageNet), or a folder with a
    NETWORK.safetensors for every network; relative to ``data_dir`` or absolute."""
    class_weighted: bool = False
    """Weight the loss by inverse class frequency of the real training set."""


class JudgeConfig(Frozen):
    """A network trained on the real training images only, that looks at the synthetic ones.

    It neither guides nor is evaluated, so nothing was tuned towards its opinion.
    """

    network: Network = "resnet34"
    """Must not be among the study's or the search's networks."""
    steps: Positive = 300
    """Optimiser steps."""
    batch_size: int = Field(32, ge=2)
    """Images per step."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak of the one-cycle schedule."""


class ResourcesConfig(Frozen):
    """What a job asks of Ray; never changes a key."""

    train_workers: Positive | tuple[Positive, Positive] = 1
    """Ray Train workers per diffusion model (DDP). [least, most] takes what is there: training
    starts with the least, grows when machines join and goes on when some are lost."""
    micro_batch: Positive | None = None
    """Images that a training worker takes at once; null: its whole share of the batch. Less
    memory, the same result."""
    activation_checkpointing: bool = False
    """Training keeps fewer activations and computes them again: less memory, a third slower."""
    sharding: Literal["none", "fsdp"] = "none"
    """``fsdp``: each training worker holds its part of the weights and of the optimiser's state
    only, for networks that are too large for one GPU; the same result."""
    cpus_per_worker: float = Field(1, gt=0)
    """Cores of a training worker."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of a training worker."""
    cpus_per_task: float = Field(1, gt=0)
    """Cores of a task: sampling, trials and downstream networks."""
    gpus_per_task: float = Field(0, ge=0)
    """GPUs of a task; 0.25 lets four share one."""
    sampling_workers: Positive = 1
    """Tasks that share the images of one sampling job, each with ``..._per_task``."""
    compile: Literal["auto", "never", "always"] = "auto"
    """torch.compile while sampling; ``auto``: where enough work is ahead to pay for it."""
    max_retries: int = Field(1, ge=0, le=100)
    """How often a job whose worker died is started again."""

    @field_validator("train_workers")
    @classmethod
    def _range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"[least, most] workers: the least, {value[0]}, is the larger one")
        return value

    @property
    def least_train_workers(self) -> int:
        value = self.train_workers
        return value if isinstance(value, int) else value[0]

    @property
    def most_train_workers(self) -> int:
        value = self.train_workers
        return value if isinstance(value, int) else value[1]


TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")


class TrackingConfig(Frozen):
    """MLflow."""

    uri: str | None = None
    """An MLflow server; default: STORAGE/mlflow.db. Credentials belong in the environment
    (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), not in here."""
    experiment: Name = "mgdm-ray"
    """MLflow's experiment, in which every run of a study stands."""

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


MOST_SEEDS = 1000
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
SeedCount = Annotated[int, Field(ge=1, le=MOST_SEEDS)]


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
    seeds: Seeds = (0, 1, 2)
    """One cell per seed: initial weights and batch order. A number N means 0 .. N-1."""
    seed: int = Field(0, ge=0)
    """Seed of everything that is shared by the cells: diffusion models, samples, search."""
    image_size: int = Field(28, ge=8, le=512)
    """Size of every dataset that does not give its own."""
    data_dir: str | None = None
    """Where .npz files are, a folder or a URL; default: the environment's MGDM_DATA_DIR, else
    ~/.medmnist."""
    storage: str = "runs"
    """Where everything goes: a folder, or a URL of an object store (s3://bucket/folder)."""
    denoiser: DenoiserConfig = DenoiserConfig()
    guide: GuideConfig = GuideConfig()
    sampling: SamplingConfig = SamplingConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    setting: GuidanceSetting = GuidanceSetting()
    """The setting of ``disturb`` and ``perturb`` where there is no search."""
    search: SearchConfig | None = None
    """Finds the setting of ``disturb`` (and of ``perturb``, which copies its strength)."""
    downstream: DownstreamConfig = DownstreamConfig()
    judge: JudgeConfig | None = JudgeConfig()
    """Measures the synthetic images: distances, label flips, copies. null: none of it."""
    limits: LimitsConfig = LimitsConfig()
    """Gates that a synthetic set must pass."""
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
            out["datasets"] = [
                {"size": size, **one} if isinstance(one, Mapping) else one
                for _, one in expanded(out["datasets"])
            ]
        return out

    @field_validator("networks", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return unique(value, "network")

    @field_validator("arms")
    @classmethod
    def _arms(cls, value: tuple[Arm, ...]) -> tuple[Arm, ...]:
        return unique(value, "arm")

    @field_validator("seeds", mode="before", json_schema_input_type=SeedCount | Seeds)
    @classmethod
    def _seed_count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MOST_SEEDS:
                raise ValueError(f"a number of seeds must be in 1 .. {MOST_SEEDS}; got {value}")
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

    @model_validator(mode="after")
    def _independent(self) -> Self:
        if self.judge is None:
            if self.limits != LimitsConfig():
                raise ValueError("'limits' needs a 'judge': nothing else measures the images")
            return self
        searched = self.search.networks if self.search else ()
        if self.judge.network in (*self.networks, *searched):
            raise ValueError(
                f"judge.network {self.judge.network!r} is evaluated or searched with as well, and "
                "the judge must be another one: name it in judge.network, or give judge: null"
            )
        return self

    @model_validator(mode="after")
    def _curve(self) -> Self:
        curve = self.synthetic.curve
        for what, wanted, have in (
            ("arms", curve and curve.arms, self.arms),
            ("networks", curve and curve.networks, self.networks),
        ):
            for name in wanted or ():
                if name not in have:
                    raise ValueError(
                        f"synthetic.curve.{what} names {name!r}, which is not among the study's: "
                        f"{', '.join(have)}"
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
    def _sharded(self) -> Self:
        halves = [w for w in ("denoiser", "guide") if getattr(self, w).precision == "float16"]
        if halves and self.resources.sharding == "fsdp":
            raise ValueError(
                f"{halves[0]}.precision 'float16' does not go with resources.sharding 'fsdp': a "
                "worker sees the overflows of its own part only; take 'bfloat16'"
            )
        return self

    @model_validator(mode="after")
    def _batches(self) -> Self:
        most = self.resources.most_train_workers
        for what, train in (("denoiser", self.denoiser), ("guide", self.guide)):
            if train.batch_size < most:
                raise ValueError(
                    f"{what}.batch_size {train.batch_size} is less than the {most} workers that "
                    "share it (resources.train_workers)"
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


def expanded(entries: Sequence[Any]) -> list[tuple[int, Any]]:
    """The datasets that the file's entries stand for, each with its entry's index."""
    return [
        (index, one)
        for index, entry in enumerate(entries)
        for one in _variants({"name": entry} if isinstance(entry, str) else entry)
    ]


def _variants(entry: Any) -> list[Any]:
    """One dataset entry per size, where ``train_size`` is a list."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("train_size"), list | tuple):
        return [entry]
    name = entry.get("name")
    return [
        {"source": name, **entry, "name": f"{name}-{size}", "train_size": size}
        for size in entry["train_size"]
    ]
