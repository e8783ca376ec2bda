"""A whole study: networks, judge, resources, tracking, and rules across sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mgdm_ray.config.base import (
    DEFAULT_ARMS,
    MEMBER_MEASUREMENTS,
    Arm,
    Frozen,
    Name,
    Network,
    Positive,
    ReferenceFault,
    distinct,
)
from mgdm_ray.config.data import DatasetConfig, LimitsConfig, SyntheticConfig
from mgdm_ray.config.diffusion import DenoiserConfig, GuidanceSetting, GuideConfig, SamplingConfig
from mgdm_ray.config.downstream import DownstreamConfig
from mgdm_ray.config.search import SearchConfig, StartPoint
from mgdm_ray.seeding import derive_seed


class JudgeConfig(Frozen):
    """Independent classifier, trained on real images only, that assesses the synthetic ones."""

    network: Network = "resnet34"
    """Must differ from the networks of the study and of the search."""
    steps: Positive = 300
    """Optimiser steps."""
    batch_size: int = Field(32, ge=2)
    """Images per step."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak of the one-cycle schedule."""


class ResourcesConfig(Frozen):
    """Resources of a job; changes no key."""

    train_workers: Positive | tuple[Positive, Positive] = 1
    """Ray Train workers per diffusion model (DDP). [least, most] is elastic: training starts with
    the least, and grows and shrinks with the cluster."""
    micro_batch: Positive | None = None
    """Images per forward of a training worker; null: its whole share of the batch. Saves memory,
    the result is the same."""
    activation_checkpointing: bool = False
    """Recompute activations in training: less memory, a third slower."""
    sharding: Literal["none", "fsdp"] = "none"
    """``fsdp`` shards weights and optimiser state over the training workers, for networks too large
    for one GPU; the result is the same."""
    cpus_per_worker: float = Field(1, gt=0)
    """Cores of a training worker."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of a training worker."""
    cpus_per_task: float = Field(1, gt=0)
    """Cores of a task: sampling, trials and downstream networks."""
    gpus_per_task: float = Field(0, ge=0)
    """GPUs of a task; 0.25 lets four share one."""
    sampling_workers: Positive = 1
    """Tasks that share one sampling job, each with ``..._per_task``."""
    compile: Literal["auto", "never", "always"] = "auto"
    """torch.compile for sampling; ``auto``: if the job is long enough to pay for it."""
    compile_training: bool = False
    """torch.compile for the diffusion models' training: minutes before the first step, then shorter
    ones; equal up to round-off. Not with ``sharding``."""
    max_retries: int = Field(1, ge=0, le=100)
    """How often a job is restarted after its worker died."""

    @field_validator("train_workers")
    @classmethod
    def _range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"[least, most] workers: least {value[0]} is above most {value[1]}")
        return value

    @model_validator(mode="after")
    def _workers_agree(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.most_train_workers > 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} with {self.most_train_workers} workers "
                "could put two of them on one GPU, which NCCL refuses: set gpus_per_worker to 1, "
                "or train_workers to 1"
            )
        if self.compile_training and self.sharding != "none":
            raise ValueError(
                f"compile_training is not offered with sharding {self.sharding!r}: "
                "set one of them to its default"
            )
        return self

    @property
    def trains_alone(self) -> bool:
        """Whether a training has one worker, without a GPU."""
        return self.train_workers == 1 and not self.gpus_per_worker

    @property
    def least_train_workers(self) -> int:
        return self.train_workers if isinstance(self.train_workers, int) else self.train_workers[0]

    @property
    def most_train_workers(self) -> int:
        return self.train_workers if isinstance(self.train_workers, int) else self.train_workers[1]


TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")


class TrackingConfig(Frozen):
    """MLflow."""

    uri: str | None = None
    """An MLflow server; default: STORAGE/mlflow.db. Credentials belong in the environment:
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: Name = "mgdm-ray"
    """The MLflow experiment of all runs."""

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
            # Not repeated in the message, which may be logged.
            raise ValueError(
                "the address holds credentials; give them in the environment as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value


MOST_SEEDS = 1000
Datasets = tuple[DatasetConfig, ...]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
SeedCount = Annotated[int, Field(ge=1, le=MOST_SEEDS)]


class StudyConfig(Frozen):
    """A whole study."""

    name: Name
    """Name of the results folder and of the MLflow parent run."""
    datasets: Annotated[tuple[DatasetConfig, ...], distinct("dataset", "name")] = Field(
        min_length=1
    )
    """Names, or mappings with more keys."""
    networks: Annotated[tuple[Network, ...], distinct("network")] = Field(min_length=1)
    """Downstream networks."""
    arms: Annotated[tuple[Arm, ...], distinct("arm")] = Field(DEFAULT_ARMS, min_length=1)
    """Arms to compare."""
    seeds: Annotated[Seeds, distinct("seed")] = (0, 1, 2)
    """Seeds of initial weights and batch order, one cell each. A number N means 0 .. N-1."""
    draws: Literal["images", "models", "one"] = "images"
    """Synthetic images of each seed's cells. ``images``: a draw for each seed by the same models,
    so that the interval covers another draw; ``models``: models for each seed as well; ``one``:
    one draw for all seeds, cheaper, and no interval covers another."""
    seed: int = Field(0, ge=0)
    """Seed of what cells share: diffusion models, samples, search."""
    image_size: int = Field(28, ge=8, le=512)
    """Default size of the datasets, in pixels."""
    data_dir: str | None = None
    """Folder or URL of the .npz files; default: $MGDM_DATA_DIR, else ~/.medmnist."""
    storage: str = "runs"
    """Folder or object store (s3://bucket/folder) for all results."""
    denoiser: DenoiserConfig = DenoiserConfig()
    guide: GuideConfig = GuideConfig()
    sampling: SamplingConfig = SamplingConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    setting: GuidanceSetting = GuidanceSetting()
    """Guidance of ``disturb`` and ``perturb`` without a search."""
    search: SearchConfig | None = None
    """Chooses the setting of ``disturb``; ``perturb`` copies its strength."""
    downstream: DownstreamConfig = DownstreamConfig()
    judge: JudgeConfig | None = JudgeConfig()
    """Measures synthetic images: FD/KID, label-flip rate, near-copies. null: off."""
    limits: LimitsConfig = LimitsConfig()
    """Upper limits for a synthetic set."""
    margin: float | None = Field(None, gt=0, lt=1)
    """Largest difference in balanced accuracy that does not matter, e.g. 0.01, chosen before the
    results: the report may then conclude "no difference larger than" it. Changes no key."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    deterministic: bool = False
    """Bit-identical records from every run on one machine: one trial at a time per search, fixed
    batches, no torch.compile. Slower; changes no key."""
    reference: Annotated[tuple[ReferenceFault, ...], distinct("fault")] = ()
    """Faults of the paper's published code to reproduce: docs/reference.md. Default: none."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("datasets"), list | tuple):
            return data
        size = {"size": data.get("image_size", 28)}
        entries = [one for _, one in expanded(data["datasets"])]
        entries = [{**size, **e} if isinstance(e, Mapping) else e for e in entries]
        return {**data, "datasets": entries}

    @field_validator("seeds", mode="before", json_schema_input_type=SeedCount | Seeds)
    @classmethod
    def _seed_count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MOST_SEEDS:
                raise ValueError(f"a number of seeds must be in 1 .. {MOST_SEEDS}; got {value}")
            return tuple(range(value))
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for rule in (_images_are_judged, _names_are_known, _method_is_possible, _shapes_fit):
            if broken := next(rule(self), None):
                raise ValueError(broken)
        return self

    def stage_one(self) -> list[tuple[float, float]]:
        """(guidance_scale, classifier_scale) of all stage-1 candidates."""
        sampling = self.sampling
        space = self.search.space if self.search else None
        free = (space and space.guidance_scale) or (sampling.guidance_scale,)
        guided = (space and space.classifier_scale) or (sampling.classifier_scale,)
        return [(float(g), float(s)) for g in free for s in guided]

    def draw_of(self, seed: int) -> int:
        """The draw of synthetic images that cells of ``seed`` use; with ``draws: one`` it is 0."""
        return 0 if self.draws == "one" else seed

    @property
    def first_draw(self) -> int:
        """That of whatever needs a single one: searches, exported models, the report's pages."""
        return self.draw_of(self.seeds[0])

    def seed_of(self, draw: int) -> int:
        """The seed that images of ``draw`` are made with: the study's for 0."""
        return derive_seed("draw", self.seed, draw) if draw else self.seed

    def placed(self, point: StartPoint) -> StartPoint:
        """``point`` with its stage-1 scales filled in; ValueError if they are no candidate."""
        given = (point.guidance_scale, point.classifier_scale)
        found = [
            (g, s) for g, s in self.stage_one() if given[0] in (None, g) and given[1] in (None, s)
        ]
        if len(found) != 1:
            every = ", ".join(f"{g:g} and {s:g}" for g, s in self.stage_one())
            raise ValueError(
                "guidance_scale and classifier_scale must name one of the stage-1 candidates "
                f"(here {every}); got {given[0]} and {given[1]}"
            )
        [(free, guided)] = found
        return point.model_copy(update={"guidance_scale": free, "classifier_scale": guided})


# Rules across sections: each function yields what is wrong.


def _images_are_judged(study: StudyConfig) -> Iterator[str]:
    searched = study.search.networks if study.search else ()
    if study.judge is None and study.limits != LimitsConfig():
        yield "'limits' needs a 'judge', which measures the images"
    if study.judge and study.judge.network in (*study.networks, *searched):
        yield (
            f"judge.network {study.judge.network!r} is evaluated or searched with as well, and "
            "the judge must be another one: change judge.network, or set judge: null"
        )


def _names_are_known(study: StudyConfig) -> Iterator[str]:
    curve = study.synthetic.curve
    for what, wanted, have in (
        ("arms", curve and curve.arms, study.arms),
        ("networks", curve and curve.networks, study.networks),
    ):
        for name in wanted or ():
            if name not in have:
                yield (
                    f"synthetic.curve.{what} names {name!r}, which is not among the study's: "
                    f"{', '.join(have)}"
                )
    for index, point in enumerate(study.search.start if study.search else ()):
        try:
            study.placed(point)
        except ValueError as error:
            yield f"search.start[{index}]: {error}"
    if study.search and study.search.warm_start == study.name:
        yield f"search.warm_start {study.name!r} is this study itself; name an earlier study"


def _method_is_possible(study: StudyConfig) -> Iterator[str]:
    if study.sampling.inversion_iterations and study.denoiser.prediction != "v":
        yield (
            "sampling.inversion_iterations needs denoiser.prediction 'v': with "
            f"{study.denoiser.prediction!r} the iteration diverges near pure noise"
        )
    if "alignment" in study.reference and study.sampling.inversion_iterations:
        yield (
            "reference 'alignment' needs sampling.inversion_iterations 0, as in the published "
            "code: its encoder ends at pure noise, where a step cannot be inverted"
        )
    if study.sampling.encode == "stored":
        yield from _noise_can_be_stored(study)
    if "clip" in study.reference and study.sampling.clip_stage_two:
        yield "reference 'clip' clips in decode only; set sampling.clip_stage_two to false"
    if "augment" in study.arms and study.downstream.augment != "none":
        yield (
            f"arm 'augment' adds nothing where downstream.augment {study.downstream.augment!r} "
            "augments every arm: drop the arm, or set downstream.augment to 'none'"
        )
    searched = study.search.space.measurement if study.search else ()
    for name in (study.setting.measurement, *searched):
        if name in MEMBER_MEASUREMENTS and not study.guide.dropout:
            yield (
                f"measurement {name!r} needs a guide with dropout, but guide.dropout is 0; "
                "set guide.dropout, e.g. to 0.2"
            )


def _noise_can_be_stored(study: StudyConfig) -> Iterator[str]:
    """Only where stage 1 is deterministic and stage 2 can repeat it."""
    unlike = {"label_dropout", "alignment", "clip", "rank_seeds", "uint8"}
    if faults := sorted(unlike & set(study.reference)):
        yield (
            "sampling.encode 'stored' needs a deterministic stage 1 that stage 2 repeats, which "
            f"reference {', '.join(map(repr, faults))} is not: set sampling.encode to 'invert'"
        )
    if any(classifier_scale for _, classifier_scale in study.stage_one()):
        yield "sampling.encode 'stored' needs classifier_scale 0; set sampling.encode to 'invert'"
    for controls in (study.setting, study.search and study.search.space):
        if controls and (scale := controls.decode_guidance_scale) != 1:
            yield (
                "sampling.encode 'stored' decodes with stage 1's guidance_scale: leave "
                f"decode_guidance_scale at 1; got {scale:g}"
            )


def _shapes_fit(study: StudyConfig) -> Iterator[str]:
    models = {"denoiser": study.denoiser, "guide": study.guide}
    for what, model in models.items():
        if model.precision == "float16" and study.resources.sharding == "fsdp":
            yield (
                f"{what}.precision 'float16' is incompatible with resources.sharding 'fsdp', "
                "where a worker sees only its own overflows; use 'bfloat16'"
            )
    for what, model in models.items():
        if model.batch_size < (most := study.resources.most_train_workers):
            yield (
                f"{what}.batch_size {model.batch_size} is below the {most} workers that "
                "share it (resources.train_workers)"
            )
    for what, model in models.items():
        levels = len(model.unet.channels)
        for dataset in study.datasets:
            if dataset.size % (factor := 2 ** (levels - 1)):
                yield (
                    f"dataset {dataset.name!r} has size {dataset.size}, but {what}.unet with "
                    f"{levels} levels needs a multiple of {factor}"
                )


def expanded(entries: Sequence[Any]) -> list[tuple[int, Any]]:
    """All datasets of the file, each with the index of its entry."""
    return [
        (index, one)
        for index, entry in enumerate(entries)
        for one in _variants({"name": entry} if isinstance(entry, str) else entry)
    ]


def _variants(entry: Any) -> list[Any]:
    """One entry per size if ``train_size`` is a list."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("train_size"), list | tuple):
        return [entry]
    name = entry.get("name")
    return [
        {"source": name, **entry, "name": f"{name}-{size}", "train_size": size}
        for size in entry["train_size"]
    ]
