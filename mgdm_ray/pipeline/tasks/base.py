"""Context, running and records of every job. No torch, no Ray."""

from __future__ import annotations

import importlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mgdm_ray.config import (
    DatasetConfig,
    DenoiserConfig,
    GuideConfig,
    ReferenceFault,
    SamplingConfig,
)
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.load import Split, data_source
from mgdm_ray.data.npz import SplitName
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.storage.records import NO_SPACE, OUT_OF_MEMORY, STORE_SILENT, WORKER_DIED, Record
from mgdm_ray.storage.remote.objects import ObjectsError
from mgdm_ray.storage.remote.store import open_store
from mgdm_ray.storage.store import Store, no_space

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Outcome = dict[str, Any]  # fields of the Record: metrics, setting, split


def silent(done: int, total: int, note: str) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class TrainingTask:
    """What a launcher needs to train a denoiser or a guide, on this or on many machines."""

    key: str
    config: DenoiserConfig | GuideConfig
    dataset: DatasetConfig
    data_dir: str | None
    seed: int
    schedule: Literal["linear", "cosine"]
    """Noise schedule of the denoiser, for its guide too."""
    storage: str
    """Location of the store; checkpoints survive a crash in its scratch folder of this job."""
    reference: tuple[ReferenceFault, ...] = ()
    """Faults of the published code to reproduce."""
    num_inference_steps: int | None = None
    """The sampling grid, which only the fault ``guide_timesteps`` trains on."""
    deterministic: bool = False
    """As in ``Context``."""

    @property
    def store(self) -> Store:
        return open_store(self.storage)

    @property
    def kind(self) -> str:
        return "fit_denoiser" if isinstance(self.config, DenoiserConfig) else "fit_guide"

    @property
    def work(self) -> Path:
        """Scratch folder of the job on this machine."""
        return self.store.work(self.kind, self.key)


WEIGHTS = "weights.safetensors"
ACCURACY_FILE = "accuracy_over_t.json"
"""Of a guide, on noisy validation images."""

Launcher = Callable[[TrainingTask, Progress], Path]
Spread = Callable[["Job", "Context", Sequence[Sequence[range]]], None]
"""Computes the parts of a sampling job, each a list of shards, side by side."""


@dataclass(frozen=True)
class Context:
    """Everything that a job needs and that does not change its result."""

    storage: str
    """Location of the store: a folder, or a URL."""
    study_folder: str
    """Of the study's own files: the databases of its searches."""
    datasets: dict[str, DatasetConfig]
    data_dir: str | None = None
    sampling_batch: int | Literal["auto"] = "auto"
    sampling_workers: int = 1
    compile: Literal["auto", "never", "always"] = "auto"
    memory_share: float = 1.0
    """Share of this machine's free memory that one job may use."""
    checkpoint_every: dict[str, int] = field(default_factory=dict)
    smaller: bool = False
    """Memory ran out with the usual batch: use half."""
    deterministic: bool = False
    """As in the study: results must not depend on timing, free memory or order of endings."""
    weights_folder: str | None = None
    """Folder of pretrained weights, if the study names one."""
    device: str = "cpu"
    launch: Launcher | None = None
    spread: Spread | None = None
    progress: Progress = silent

    @property
    def store(self) -> Store:
        return open_store(self.storage)

    def set_up_device(self, kind: str) -> None:
        """Choose a GPU's arithmetic for a job of ``kind``, in the process that computes."""
        if self.device != "cpu":
            from mgdm_ray.precision import set_up_gpu

            sampling = kind in ("generate", "encode", "decode")
            set_up_gpu(self.device, deterministic=self.deterministic, benchmark=sampling)


JobFunction = Callable[["Job", Context, Path], Outcome]


FUNCTIONS = {
    "fit_denoiser": "mgdm_ray.pipeline.tasks.fit",
    "fit_guide": "mgdm_ray.pipeline.tasks.fit",
    "generate": "mgdm_ray.pipeline.tasks.sampling",
    "encode": "mgdm_ray.pipeline.tasks.sampling",
    "confirm": "mgdm_ray.pipeline.tasks.confirm",
    "decode": "mgdm_ray.pipeline.tasks.sampling",
    "fit_judge": "mgdm_ray.pipeline.tasks.judge",
    "assess": "mgdm_ray.pipeline.tasks.assess",
    "fit_downstream": "mgdm_ray.pipeline.tasks.downstream",
    "fit_at_ratio": "mgdm_ray.pipeline.tasks.downstream",
}
"""The module of each kind's function, imported when such a job runs: MONAI takes seconds."""


def function_of(kind: str) -> JobFunction:
    """JobError for a kind that only the engine runs, as ``search``."""
    if kind not in FUNCTIONS:
        raise JobError(f"a {kind} job cannot run without the engine")
    function: JobFunction = getattr(importlib.import_module(FUNCTIONS[kind]), kind)
    return function


class JobError(RuntimeError):
    """A job cannot give a result; the message is the record's reason."""


def run(job: Job, context: Context, functions: Mapping[str, JobFunction] | None = None) -> Record:
    """Compute ``job``, whose needs are done, unless the store has it. A failure is a record too."""
    store = context.store
    if store.is_done(job.kind, job.key):
        return stored_record(store, job.kind, job.key)
    started = time.monotonic()
    try:
        context.set_up_device(job.kind)
        function = (functions or {}).get(job.kind) or function_of(job.kind)
        with store.writing(job.kind, job.key) as folder:
            outcome = function(job, context, folder)
            record = replace(
                base_record(job), seconds=round(time.monotonic() - started, 3), **outcome
            )
            provenance = {"inputs": job.inputs, "needs": job.needs}
            store.commit(job.kind, job.key, folder, asdict(record), provenance)
    except Exception as error:  # noqa: BLE001 - whatever a job dies of becomes its record
        if store.is_done(job.kind, job.key):  # another process was faster
            return stored_record(store, job.kind, job.key)
        write_log(store, job, traceback.format_exc())
        return failed(job, reason_of(error), seconds=time.monotonic() - started)
    finally:
        store.release()
    return record


def base_record(job: Job) -> Record:
    return Record(
        key=job.key,
        kind=job.kind,
        status="done",
        dataset=job.dataset,
        network=job.network,
        arm=job.arm,
        seed=job.seed,
        versions=versions(),
        git_commit=git_commit(),
    )


def failed(job: Job, reason: str, seconds: float = 0.0) -> Record:
    return replace(base_record(job), status="failed", reason=reason, seconds=round(seconds, 3))


def held_up(job: Job, bad: Record) -> Record:
    """The record of a job that is blocked by ``bad``, one of its needs."""
    return failed(job, f"needs {bad.kind} {bad.key[:8]}, which {bad.status}: {bad.reason}")


def refused(job: Job, reason: str) -> Record:
    """The record of a job that a limit of the study refused; not a failure."""
    return replace(base_record(job), status="refused", reason=reason)


def stored_record(store: Store, kind: str, key: str) -> Record:
    return Record.from_dict(store.manifest(kind, key)["record"])


def log_path(store: Store, job: Job) -> Path:
    return store.root / "logs" / f"{job.kind}-{job.key}.log"


def write_log(store: Store, job: Job, text: str) -> None:
    """Write the whole traceback to the job's log file, if there is room."""
    path = log_path(store, job)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{job.label}\n{text}", encoding="utf-8")
        store.share(path)
        log.warning("%s failed, see %s", job.label, path)
    except OSError as error:
        log.warning("%s failed, and %s cannot be written: %s", job.label, path, error)


def reason_of(error: BaseException) -> str:
    """One line for the record; causes outside of the job get the prefixes of
    ``storage.records``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {' '.join(lines)}"
    # By name: torch has an OutOfMemoryError of its own, and is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        reason = f"{OUT_OF_MEMORY}: {reason}"
    elif isinstance(error, ObjectsError):
        reason = f"{STORE_SILENT}: {reason}"
    elif no_space(error):
        reason = f"{NO_SPACE}: {reason}"
    elif isinstance(error, JobError) and str(error).startswith(WORKER_DIED):
        reason = str(error)
    return reason[:500]


def open_split(job: Job, context: Context, split: SplitName) -> Split:
    return data_source(context.datasets[job.dataset], context.data_dir).load(split)


def info_of(job: Job, context: Context) -> DatasetInfo:
    return dataset_info(context.datasets[job.dataset], context.data_dir)


def artefact(context: Context, kind: str, key: str) -> Path:
    """The folder of a finished artefact; JobError where it is missing or truncated."""
    store = context.store
    try:
        folder = store.here(kind, key)
    except FileNotFoundError as error:
        raise JobError(f"{kind} {key} is not in the store {store.location}") from error
    wrong = store.verify(kind, key, "sizes")
    if wrong:
        raise JobError(
            f"{kind} {key} is damaged: {wrong}; rerun with --retry-failed to compute it again"
        )
    return folder


def save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def step_progress(context: Context, steps: int) -> Callable[[int, float], None]:
    """An ``on_step(step, loss)`` that reports to the context's ``progress``."""
    return lambda step, loss: context.progress(step, steps, f"loss {loss:.3f}")


def sampling_config(job: Job, **changes: Any) -> SamplingConfig:
    """From the inputs of a sampling job or a search."""
    fields = SamplingConfig.model_fields
    given = {name: value for name, value in job.inputs.items() if name in fields}
    return SamplingConfig.model_validate({**given, **changes})


def candidate_index(stage_one: Sequence[Sequence[float]], setting: Mapping[str, Any]) -> int:
    """The place of the candidate that has the scales of ``setting``; ValueError if none has."""
    scales = (setting["guidance_scale"], setting["classifier_scale"])
    return [tuple(candidate) for candidate in stage_one].index(scales)


def best_setting(job: Job, context: Context) -> dict[str, Any] | None:
    """The setting that the search of this job found; None if the job needs no search."""
    if "search" not in job.needs:
        return None
    return dict(stored_record(context.store, "search", job.needs["search"]).setting)


def chosen_stage_one(job: Job, context: Context, role: str) -> str:
    """The key of the job whose ``role`` (``images`` or ``latents``) this job uses."""
    if f"{role}/1" not in job.needs:
        return job.needs[f"{role}/0"]
    if "search" not in job.needs:
        raise JobError("several stage-1 candidates and no search to choose one")
    search = context.store.manifest("search", job.needs["search"])
    index = candidate_index(search["inputs"]["stage_one"], search["record"]["setting"])
    return job.needs[f"{role}/{index}"]


class Scorer(Protocol):
    """Scores settings of a search: tasks.trial.TrialScorer."""

    def decode(self, setting: Mapping[str, Any]) -> Any:
        """The images of this setting, as ``score`` takes them."""

    def score(self, network: str, added: Any, repeat: int) -> float:
        """Validation score of ``network``, higher is better; ``repeat`` 0, 1, ... is its seed."""

    def cost(self, setting: Mapping[str, Any]) -> float:
        """Cost of an image of this setting: the second objective, lower is better."""


MakeScorer = Callable[["Job", Context], Scorer]


def trial_scorer(job: Job, context: Context) -> Scorer:
    from mgdm_ray.pipeline.tasks.trial import TrialScorer  # imports torch

    return TrialScorer(job, context)
