"""One plain function per job kind: the only place that joins data, diffusion, downstream and store.

No Ray here: a job called directly gives what it gives through the engine. What differs between
the two (who trains, where progress goes) comes in with the Context.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from mgdm_ray.config import (
    DatasetConfig,
    DenoiserConfig,
    DownstreamConfig,
    GuidanceSetting,
    GuideConfig,
    SamplingConfig,
    SyntheticConfig,
)
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.load import Split, load_split, to_tensor, to_uint8
from mgdm_ray.data.mix import duplicate_indices, synthetic_labels, training_set
from mgdm_ray.diffusion.guidance import Direction
from mgdm_ray.diffusion.schedule import NoiseSchedule, make_schedule
from mgdm_ray.diffusion.train import (
    STATE_FILE,
    TENSORS_FILE,
    TrainResult,
    guide_accuracy,
    train,
)
from mgdm_ray.diffusion.two_stage import decode as decode_images
from mgdm_ray.diffusion.two_stage import encode as encode_images
from mgdm_ray.diffusion.two_stage import generate as generate_images
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.downstream.fit import fit
from mgdm_ray.downstream.metrics import score
from mgdm_ray.downstream.zoo import build_network
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.records import Record
from mgdm_ray.store import Store

if TYPE_CHECKING:
    from mgdm_ray.plan import Job

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Outcome = dict[str, Any]  # fields of the Record: metrics, setting, split


def silent(done: int, total: int, note: str) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class TrainingTask:
    """What a launcher needs to train a denoiser or a guide, on this or on many machines."""

    model: str
    """``denoiser`` or ``guide``."""
    key: str
    config: dict[str, Any]
    dataset: dict[str, Any]
    data_dir: str | None
    seed: int
    schedule: str
    """The guide must know the noise of the denoiser it will guide."""
    work: str
    """Folder for checkpoints that survive a crash."""


Launcher = Callable[[TrainingTask, Progress], Path]


@dataclass(frozen=True)
class Context:
    """What a job must know that does not change its result."""

    storage: str
    study_folder: str
    """Where this study's own files go: the search journal."""
    datasets: dict[str, DatasetConfig]
    data_dir: str | None = None
    sampling_batch: int = 64
    checkpoint_every: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    launch: Launcher | None = None
    progress: Progress = silent

    @property
    def store(self) -> Store:
        return Store(self.storage)


JobFunction = Callable[["Job", Context, Path], Outcome]


class JobError(RuntimeError):
    """A job cannot give a result; the message is the record's reason."""


# --- running one job ------------------------------------------------------------------------


def run(
    job: Job,
    needs: Sequence[Record],
    context: Context,
    functions: Mapping[str, JobFunction] | None = None,
) -> Record:
    """Compute ``job`` unless the store has it. A failure is a record too, never an exception."""
    store = context.store
    if store.is_done(job.kind, job.key):
        return stored_record(store, job.kind, job.key)
    bad = next((need for need in needs if need.status != "done"), None)
    if bad is not None:
        return failed(job, f"needs {bad.kind} {bad.key[:8]}, which {bad.status}: {bad.reason}")
    started = time.monotonic()
    try:
        with store.writing(job.kind, job.key) as folder:
            outcome = (functions or FUNCTIONS)[job.kind](job, context, folder)
            record = replace(
                base_record(job), seconds=round(time.monotonic() - started, 3), **outcome
            )
            provenance = {"inputs": job.inputs, "needs": job.needs}
            store.commit(job.kind, job.key, folder, asdict(record), provenance)
    except Exception as error:  # noqa: BLE001 - whatever a job dies of becomes its record
        path = write_log(store, job, traceback.format_exc())
        log.warning("%s failed, see %s", job.label, path)
        return failed(job, _reason(error), seconds=time.monotonic() - started)
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


def stored_record(store: Store, kind: str, key: str) -> Record:
    return Record.from_dict(store.manifest(kind, key)["record"])


def log_path(store: Store, job: Job) -> Path:
    return store.root / "logs" / f"{job.kind}-{job.key}.log"


def write_log(store: Store, job: Job, text: str) -> Path:
    path = log_path(store, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{job.label}\n{text}", encoding="utf-8")
    return path


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return f"{type(error).__name__}: {first}"[:500]


# --- what several jobs load -----------------------------------------------------------------


def _split(job: Job, context: Context, split: str) -> Split:
    return load_split(context.datasets[job.dataset], split, context.data_dir)


def _info(job: Job, context: Context) -> DatasetInfo:
    return dataset_info(context.datasets[job.dataset], context.data_dir)


def _folder(context: Context, kind: str, key: str) -> Path:
    store = context.store
    if not store.is_done(kind, key):
        raise JobError(f"{kind} {key} is not in the store {store.root}")
    return store.folder(kind, key)


def _save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _save_images(folder: Path, images: torch.Tensor, labels: np.ndarray) -> None:
    save_file(
        {"images": np.ascontiguousarray(images.numpy()), "labels": labels.astype(np.int64)},
        folder / "images.safetensors",
    )


def _load_images(context: Context, kind: str, key: str) -> tuple[torch.Tensor, np.ndarray]:
    """(images or latents `[M, C, H, W]` float32, labels `[M]` int64)."""
    loaded = load_file(_folder(context, kind, key) / "images.safetensors")
    return torch.from_numpy(loaded["images"]), loaded["labels"]


@dataclass(frozen=True)
class Denoiser:
    model: torch.nn.Module
    config: DenoiserConfig
    schedule: NoiseSchedule
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(context: Context, key: str) -> Denoiser:
    """The trained denoiser (EMA weights) of the job ``key``, in eval mode without gradients."""
    folder = _folder(context, "fit_denoiser", key)
    facts = json.loads((folder / "model.json").read_text())
    config = DenoiserConfig.model_validate(facts["config"])
    channels, height, width = facts["shape"]
    model = build_denoiser(config.unet, channels, facts["num_classes"], 0)
    _with_weights(model, folder, context.device)
    schedule = make_schedule(config.schedule)
    return Denoiser(model, config, schedule, facts["num_classes"], (channels, height, width))


def load_guide(context: Context, key: str) -> torch.nn.Module:
    """The trained noisy classifier of the job ``key``, in eval mode without gradients."""
    folder = _folder(context, "fit_guide", key)
    facts = json.loads((folder / "model.json").read_text())
    config = GuideConfig.model_validate(facts["config"])
    model = build_guide(config.unet, facts["shape"][0], facts["num_classes"], 0)
    return _with_weights(model, folder, context.device)


WEIGHTS = "weights.safetensors"


def _with_weights(model: torch.nn.Module, folder: Path, device: str) -> torch.nn.Module:
    weights = {k: torch.from_numpy(v) for k, v in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False)


def draw_grid(path: Path, images: torch.Tensor, labels: np.ndarray, num_classes: int) -> None:
    """A PNG with one row per class and up to ten images in it; a missing image is grey."""
    from PIL import Image

    columns, (channels, height, width) = 10, images.shape[1:]
    sheet = np.full((num_classes * (height + 2), columns * (width + 2), channels), 128, np.uint8)
    for label in range(num_classes):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = label * (height + 2) + 1, column * (width + 2) + 1
            sheet[top : top + height, left : left + width] = to_uint8(images[index : index + 1])[0]
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    # Small images are enlarged without smoothing, so that a reader sees the pixels there are.
    factor = max(1, 64 // height)
    resized = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    resized.save(path)


# --- training of the diffusion models -------------------------------------------------------


def training_config(task: TrainingTask) -> DenoiserConfig | GuideConfig:
    kind = DenoiserConfig if task.model == "denoiser" else GuideConfig
    return kind.model_validate(task.config)


def train_model(task: TrainingTask, **options: Any) -> TrainResult:
    """Train as ``task`` says; ``options`` are those of ``diffusion.train.train``.

    Every worker calls this: each loads the data itself, so no images travel.
    """
    dataset = DatasetConfig.model_validate(task.dataset)
    split = load_split(dataset, "train", task.data_dir)
    return train(
        task.model,
        training_config(task),
        to_tensor(split.images),
        torch.from_numpy(split.labels),
        dataset_info(dataset, task.data_dir).num_classes,
        task.seed,
        schedule=make_schedule(task.schedule),
        **options,
    )


def train_here(task: TrainingTask, progress: Progress) -> Path:
    """Train in this process and return the folder with the final state: a Launcher without Ray."""
    config = training_config(task)
    folder = Path(task.work) / "final"
    result = train_model(
        task, on_step=lambda step, loss: progress(step, config.steps, f"loss {loss:.3f}")
    )
    result.state.save(folder)
    return folder


def _fit(job: Job, context: Context, folder: Path, model: str) -> torch.nn.Module:
    """Train and save ``weights.safetensors``, ``model.json``, ``history.json``; return the model."""
    dataset = context.datasets[job.dataset]
    info = _info(job, context)
    config = {
        **job.inputs["train"],
        "checkpoint_every": context.checkpoint_every.get(model, job.inputs["train"]["steps"]),
    }
    work = context.store.work(job.kind, job.key)
    task = TrainingTask(
        model=model,
        key=job.key,
        config=config,
        dataset=dataset.model_dump(mode="json"),
        data_dir=context.data_dir,
        seed=job.inputs["seed"],
        schedule=job.inputs["schedule"],
        work=str(work),
    )
    final = (context.launch or train_here)(task, context.progress)
    shape = [info.channels, dataset.size, dataset.size]
    facts = {"config": config, "shape": shape, "num_classes": info.num_classes}
    _save_json(folder / "model.json", facts)
    save_file(_trained_weights(final), folder / WEIGHTS)
    history = json.loads((final / STATE_FILE).read_text(encoding="utf-8"))["history"]
    _save_json(folder / "history.json", history)
    build = build_denoiser if model == "denoiser" else build_guide
    network = build(training_config(task).unet, info.channels, info.num_classes, 0)
    return _with_weights(network, folder, context.device)


def _trained_weights(final: Path) -> dict[str, np.ndarray]:
    """The denoiser's averaged weights; the guide has no average, so its own."""
    tensors = load_file(final / TENSORS_FILE)
    prefix = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _last_loss(folder: Path) -> dict[str, float]:
    history = json.loads((folder / "history.json").read_text())
    tail = [row["loss"] for row in history[-max(1, len(history) // 10) :]]
    return {"loss": float(np.mean(tail))} if tail else {}


def fit_denoiser(job: Job, context: Context, folder: Path) -> Outcome:
    _fit(job, context, folder, "denoiser")
    real = _split(job, context, "train")
    draw_grid(folder / "real.png", to_tensor(real.images), real.labels, _info(job, context).num_classes)
    return {"metrics": _last_loss(folder)}


ACCURACY_TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)


def fit_guide(job: Job, context: Context, folder: Path) -> Outcome:
    """Also measures the guide's accuracy over t on validation data: can guidance work at all?"""
    guide = _fit(job, context, folder, "guide")
    val = _split(job, context, "val")
    accuracy = guide_accuracy(
        guide,
        to_tensor(val.images),
        torch.from_numpy(val.labels),
        make_schedule(job.inputs["schedule"]),
        job.inputs["seed"],
        list(ACCURACY_TIMESTEPS),
        device=context.device,
    )
    curve = {"t": list(accuracy), "balanced_accuracy": list(accuracy.values())}
    _save_json(folder / "accuracy_over_t.json", curve)
    mean = {"balanced_accuracy_over_t": float(np.mean(list(accuracy.values())))}
    return {"metrics": {**_last_loss(folder), **mean}, "split": "val"}


# --- sampling -------------------------------------------------------------------------------


def _sampling(job: Job, context: Context, denoiser: Denoiser, what: str) -> dict[str, Any]:
    """The arguments that all three stages share."""
    fields = SamplingConfig.model_fields
    given = {name: value for name, value in job.inputs.items() if name in fields}
    return {
        "config": SamplingConfig(batch_size=context.sampling_batch, **given),
        "prediction": denoiser.config.prediction,
        "schedule": denoiser.schedule,
        "device": context.device,
        "on_batch": lambda done, total: context.progress(done, total, what),
    }


def generate(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1: labelled images from noise."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    guide = load_guide(context, job.needs["guide"]) if "guide" in job.needs else None
    wanted = SyntheticConfig.model_validate(job.inputs["synthetic"])
    train_labels = _split(job, context, "train").labels
    labels = synthetic_labels(train_labels, denoiser.num_classes, wanted.ratio, wanted.balance)
    images = generate_images(
        denoiser.model,
        guide,
        torch.from_numpy(labels),
        range(len(labels)),
        shape=denoiser.shape,
        seed_parts=("generate", job.inputs["seed"]),
        **_sampling(job, context, denoiser, "images"),
    )
    _save_images(folder, images, labels)
    draw_grid(folder / "grid.png", images, labels, denoiser.num_classes)
    scales = {k: job.inputs[k] for k in ("guidance_scale", "classifier_scale")}
    return {"setting": scales, "metrics": {"images": float(len(labels))}}


def encode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1 images to latents x_T, unguided."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    images, labels = _load_images(context, "generate", job.needs["images"])
    latents = encode_images(
        denoiser.model,
        images,
        torch.from_numpy(labels),
        **_sampling(job, context, denoiser, "latents"),
    )
    _save_images(folder, latents, labels)
    source = stored_record(context.store, "generate", job.needs["images"])
    spread = float(latents.std())
    return {"setting": source.setting, "metrics": {"latent_std": spread, "images": float(len(labels))}}


def _roles(job: Job, prefix: str) -> list[str]:
    """Keys of the needs ``prefix/0``, ``prefix/1``, ... in order."""
    found = {
        int(role.removeprefix(f"{prefix}/")): key
        for role, key in job.needs.items()
        if role.startswith(f"{prefix}/")
    }
    return [found[index] for index in sorted(found)]


def _best_setting(job: Job, context: Context) -> dict[str, Any] | None:
    """What the search of this job found; None where the job needs no search."""
    if "search" not in job.needs:
        return None
    return dict(stored_record(context.store, "search", job.needs["search"]).setting)


def _chosen(job: Job, context: Context, role: str, best: dict[str, Any] | None) -> str:
    """The key among this job's stage-1 candidates that has the chosen stage-1 scales."""
    candidates, kind = _roles(job, role), {"latents": "encode", "images": "generate"}[role]
    if len(candidates) == 1:
        return candidates[0]
    if best is None:
        raise JobError("several stage-1 candidates and no search to choose one")
    for key in candidates:
        setting = stored_record(context.store, kind, key).setting
        if all(setting[name] == best[name] for name in setting):
            return key
    raise JobError(f"no stage-1 candidate with the searched setting {best}")


def decode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 2: latents back to images, under measurement guidance or one of its controls."""
    best = _best_setting(job, context)
    latents_key = _chosen(job, context, "latents", best)
    setting = None
    if job.arm != "roundtrip":
        chosen = best or job.inputs["setting"]
        fields = GuidanceSetting.model_fields
        setting = GuidanceSetting.model_validate({k: v for k, v in chosen.items() if k in fields})
    images, labels = decode_latents(
        job, context, latents_key, setting, direction="random" if job.arm == "perturb" else "gradient"
    )
    _save_images(folder, images, labels)
    stage_one = stored_record(context.store, "encode", latents_key).setting
    draw_grid(folder / "grid.png", images, labels, _info(job, context).num_classes)
    source, _ = _load_images(context, "generate", _source(context, latents_key))
    change = float((images - source).pow(2).mean().sqrt())
    return {
        "setting": {**stage_one, **(setting.model_dump() if setting else {})},
        "metrics": {"rms_change": change, "images": float(len(labels))},
    }


def _source(context: Context, latents_key: str) -> str:
    """The generate job whose images were encoded into these latents."""
    return str(context.store.manifest("encode", latents_key)["needs"]["images"])


def decode_latents(
    job: Job,
    context: Context,
    latents_key: str,
    setting: GuidanceSetting | None,
    *,
    direction: Direction = "gradient",
    count: int | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """(images, labels) of the first ``count`` latents, decoded under ``setting``."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    guide = load_guide(context, job.needs["guide"]) if setting else None
    latents, labels = _load_images(context, "encode", latents_key)
    labels = labels[:count]  # classes are evenly mixed: a beginning has the shares of the whole
    images = decode_images(
        denoiser.model,
        guide,
        latents[:count],
        torch.from_numpy(labels),
        range(len(labels)),
        setting,
        direction=direction,
        seed_parts=("decode", job.inputs["seed"]),
        **_sampling(job, context, denoiser, "images"),
    )
    return images, labels


# --- search ---------------------------------------------------------------------------------


class TrialScorer:
    """Scores guidance settings on validation data; loads data once, decodes once per setting."""

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.context = job, context
        self.info = _info(job, context)
        self.train = _split(job, context, "train")
        self.val = _split(job, context, "val")
        self.config = DownstreamConfig.model_validate(job.inputs["downstream"])

    def decode(self, setting: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        candidates = [tuple(c) for c in self.job.inputs["stage_one"]]
        index = candidates.index((setting["guidance_scale"], setting["classifier_scale"]))
        guidance = GuidanceSetting(
            measurement=setting["measurement"],
            uncertainty_scale=setting["uncertainty_scale"],
            gradient=setting["gradient"],
        )
        images, labels = decode_latents(
            self.job,
            self.context,
            self.job.needs[f"latents/{index}"],
            guidance,
            count=self.job.inputs["images"],
        )
        return images, torch.from_numpy(labels)

    def score(self, network: str, added: tuple[torch.Tensor, torch.Tensor]) -> float:
        """Validation balanced accuracy of ``network`` trained on real plus added images."""
        images, labels = training_set(self.train, added)
        seed = ("search", self.job.inputs["seed"], network)
        model = build_network(
            network, self.info.num_classes, self.info.channels, images.shape[-1], *seed
        )
        result = fit(
            model,
            images,
            labels,
            {"val": (to_tensor(self.val.images), torch.from_numpy(self.val.labels))},
            self.config,
            self.info.num_classes,
            seed,
            class_weights=class_weights(self.config, self.train.labels, self.info.num_classes),
            device=self.context.device,
        )
        metrics = score(result.probabilities["val"], self.val.labels, self.info.task)
        return metrics["balanced_accuracy"]


def class_weights(
    config: DownstreamConfig, labels: np.ndarray, num_classes: int
) -> torch.Tensor | None:
    """Inverse class frequencies of the real training set with mean 1 over its images, or None."""
    if not config.class_weighted:
        return None
    counts = np.bincount(labels, minlength=num_classes).clip(1)
    return torch.from_numpy(len(labels) / (num_classes * counts)).float()


# --- downstream -----------------------------------------------------------------------------


def added_images(
    job: Job, context: Context, real: Split, num_classes: int
) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, dict[str, Any]]:
    """What the arm adds to the real training set, and the guidance setting behind it."""
    if job.arm in ("real", "augment"):
        return None, {}
    if job.arm == "duplicate":
        wanted = SyntheticConfig.model_validate(job.inputs["synthetic"])
        labels = synthetic_labels(real.labels, num_classes, wanted.ratio, wanted.balance)
        index = duplicate_indices(real.labels, labels, "duplicate", job.inputs["seed"])
        return (to_tensor(real.images[index]), torch.from_numpy(labels)), {}
    if job.arm == "generate":
        key, kind = _chosen(job, context, "images", _best_setting(job, context)), "generate"
    else:
        key, kind = job.needs["images"], "decode"
    images, image_labels = _load_images(context, kind, key)
    setting = stored_record(context.store, kind, key).setting
    return (images, torch.from_numpy(image_labels)), setting


def fit_downstream(job: Job, context: Context, folder: Path) -> Outcome:
    """One cell: train on real plus the arm's images, then open the test split, once."""
    assert job.network is not None
    info = _info(job, context)
    real, val = _split(job, context, "train"), _split(job, context, "val")
    added, setting = added_images(job, context, real, info.num_classes)
    images, labels = training_set(real, added)
    config = DownstreamConfig.model_validate(job.inputs["downstream"])
    # The arm is not part of the seed: all arms of a cell start from the same weights.
    seed = ("cell", job.dataset, job.network, job.inputs["seed"])
    model = build_network(job.network, info.num_classes, info.channels, images.shape[-1], *seed)
    test = _split(job, context, "test")
    result = fit(
        model,
        images,
        labels,
        {
            "val": (to_tensor(val.images), torch.from_numpy(val.labels)),
            "test": (to_tensor(test.images), torch.from_numpy(test.labels)),
        },
        config,
        info.num_classes,
        seed,
        augment=job.arm == "augment",
        class_weights=class_weights(config, real.labels, info.num_classes),
        device=context.device,
        on_step=lambda step, loss: context.progress(step, config.steps, f"loss {loss:.3f}"),
    )
    _save_json(folder / "history.json", result.history)
    metrics: dict[str, float] = {"train_images": float(len(labels))}
    for name, split in (("val", val), ("test", test)):
        save_file(
            {"probabilities": result.probabilities[name], "labels": split.labels},
            folder / f"{name}_predictions.safetensors",
        )
        scores = score(result.probabilities[name], split.labels, info.task)
        metrics |= {name + "_" + k if name == "val" else k: v for k, v in scores.items()}
    return {"metrics": metrics, "setting": setting, "split": "test"}


FUNCTIONS: dict[str, JobFunction] = {
    "fit_denoiser": fit_denoiser,
    "fit_guide": fit_guide,
    "generate": generate,
    "encode": encode,
    "decode": decode,
    "fit_downstream": fit_downstream,
}
