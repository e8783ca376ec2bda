"""Jobs ``generate``, ``encode`` and ``decode``: the two stages of guided sampling.

Images are computed shard by shard, in one process or several; finished shards are kept, so that a
kill costs one at most.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgdm_ray.config import GuidanceSetting, SyntheticConfig
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.pipeline import Sampler
from mgdm_ray.diffusion.published_faults import rank_duplicates
from mgdm_ray.pipeline.tasks.base import (
    Context,
    Outcome,
    artefact,
    best_setting,
    chosen_stage_one,
    info_of,
    open_split,
    sampling_config,
    stored_record,
)
from mgdm_ray.pipeline.tasks.guide_levels import with_levels
from mgdm_ray.pipeline.tasks.images import (
    count_images,
    draw_grid,
    load_images,
    read_rows,
    save_shard,
    shard_path,
    shard_ranges,
    shards_in,
)
from mgdm_ray.pipeline.tasks.models import load_denoiser, load_guide
from mgdm_ray.storage.files import replacing

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of gamma that ``strengths.png`` shows."""
STRENGTHS_FILE = "strengths.png"

RowSampler = Callable[[range], tuple[torch.Tensor, np.ndarray]]
"""Rows -> (images `[M, C, H, W]` float32, their labels `[M]`)."""


def sampler_for(
    job: Job, context: Context, images: int, *, guided: bool, latents_key: str | None = None
) -> Sampler:
    """The networks of a sampling job or a search, ready to make ``images`` images.

    Stage 2 from stored noise repeats the stage 1 of ``latents_key``.
    """
    config = sampling_config(job, batch_size=context.sampling_batch)
    if config.encode == "stored" and latents_key:
        scale = stored_record(context.store, "encode", latents_key).setting["guidance_scale"]
        config = config.model_copy(update={"guidance_scale": scale})
    if context.smaller and config.batch_size != "auto":  # which has halved the memory already
        half = max(1, config.batch_size // 2)
        config = config.model_copy(update={"batch_size": half})
    done = 0

    def on_batch(_stage: str, now: int, total: int) -> None:
        nonlocal done
        context.progress(done + now, images, "images")
        done += total if now == total else 0

    sampler = Sampler(
        load_denoiser(context, job.needs["denoiser"]),
        load_guide(context, job.needs["guide"]) if guided else None,
        config,
        Execution(context.device, compile=context.compile, memory_share=context.memory_share),
        seed=job.inputs.get("seed", 0),
        faults=job.inputs.get("reference", ()),
        on_batch=on_batch,
    )
    sampler.expect(images)
    return sampler


def _generator(job: Job, context: Context, images: int) -> RowSampler:
    sampler = sampler_for(job, context, images, guided="guide" in job.needs)
    labels = torch.from_numpy(labels_to_make(job, context))
    indices: Sequence[int] = range(len(labels))
    if "rank_seeds" in job.inputs.get("reference", ()):
        indices = rank_duplicates(labels)

    def sample(rows: range) -> tuple[torch.Tensor, np.ndarray]:
        mine = slice(rows.start, rows.stop)
        return sampler.generate(labels[mine], indices[mine]), labels[mine].numpy()

    return sample


def labels_to_make(job: Job, context: Context) -> np.ndarray:
    """Labels `[M]` int64 of a ``generate`` job's images, by index."""
    wanted = SyntheticConfig.model_validate(job.inputs["synthetic"])
    train_labels = open_split(job, context, "train").labels
    classes = info_of(job, context).num_classes
    return synthetic_labels(
        train_labels, classes, wanted.ratio, wanted.balance, per_class=wanted.per_class
    )


def _encoder(job: Job, context: Context, images: int) -> RowSampler:
    sampler = sampler_for(job, context, images, guided=False)

    def sample(rows: range) -> tuple[torch.Tensor, np.ndarray]:
        sources, labels = load_images(context, "generate", job.needs["images"], rows)
        return sampler.encode(sources, torch.from_numpy(labels), rows), labels

    return sample


def decoder(
    job: Job, context: Context, images: int, latents_key: str, setting: GuidanceSetting | None
) -> RowSampler:
    """Stage 2 of a decode job or a search: rows of the latents ``latents_key`` to images."""
    guided = setting is not None
    sampler = sampler_for(job, context, images, guided=guided, latents_key=latents_key)

    def sample(rows: range) -> tuple[torch.Tensor, np.ndarray]:
        latents, labels = load_images(context, "encode", latents_key, rows)
        y, random = torch.from_numpy(labels), job.arm == "perturb"
        return sampler.decode(latents, y, rows, setting, random=random), labels

    return sample


def _chosen(job: Job, context: Context) -> tuple[str, GuidanceSetting | None]:
    """The latents that a decode job starts from, and how it guides."""
    latents_key = chosen_stage_one(job, context, "latents")
    if job.arm == "roundtrip":
        return latents_key, None
    job = with_levels(job, context)
    return latents_key, GuidanceSetting.of(best_setting(job, context) or job.inputs["setting"])


def _decoder_of_arm(job: Job, context: Context, images: int) -> RowSampler:
    return decoder(job, context, images, *_chosen(job, context))


SAMPLERS: dict[str, Callable[[Job, Context, int], RowSampler]] = {
    "generate": _generator,
    "encode": _encoder,
    "decode": _decoder_of_arm,
}


def sample_shards(job: Job, context: Context, shards: Sequence[range]) -> None:
    """Compute those of ``shards`` that are missing, into the job's scratch folder."""
    store = context.store
    work = store.work(job.kind, job.key)
    work.mkdir(parents=True, exist_ok=True)
    store.bring(work)
    todo = [rows for rows in shards if not shard_path(work, rows).exists()]
    if todo:
        sampler = SAMPLERS[job.kind](job, context, sum(len(rows) for rows in todo))
        for rows in todo:
            save_shard(work, rows, *sampler(rows))
            store.share(shard_path(work, rows))
    # Here: the job itself may run without a GPU.
    first = any(rows.start == 0 for rows in shards)
    if job.arm == "disturb" and first and not (work / STRENGTHS_FILE).exists():
        _draw_strengths(job, context, work)
        if (work / STRENGTHS_FILE).exists():
            store.share(work / STRENGTHS_FILE)


def _sample(job: Job, context: Context, folder: Path, total: int) -> None:
    """All shards of a job, by the context's workers or here, into ``folder``."""
    shards = shard_ranges(total, context.sampling_workers)
    if context.spread is None:
        sample_shards(job, context, shards)
    else:
        parts = [shards[i :: context.sampling_workers] for i in range(context.sampling_workers)]
        context.spread(job, context, [part for part in parts if part])
    work = context.store.work(job.kind, job.key)
    context.store.bring(work)
    paths = [shard_path(work, rows) for rows in shards]
    for path in [*paths, *work.glob(STRENGTHS_FILE)]:
        # Linked, not moved: a kill must not cost finished shards.
        try:
            os.link(path, folder / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, folder / path.name)


def generate(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1: labelled images from noise."""
    total = len(labels_to_make(job, context))
    _sample(job, context, folder, total)
    _draw_beginning(job, context, folder)
    scales = {k: job.inputs[k] for k in ("guidance_scale", "classifier_scale")}
    return {"setting": scales, "metrics": {"images": float(total)}}


def encode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1 images to latents x_T, unguided."""
    total = count_images(context, "generate", job.needs["images"])
    _sample(job, context, folder, total)
    source = stored_record(context.store, "generate", job.needs["images"])
    moments = _Mean(), _Mean()
    for start, stop, _ in shards_in(folder):
        latents, _labels = read_rows(folder, range(start, stop))
        moments[0].add(latents)
        moments[1].add(latents.square())
    spread = math.sqrt(max(0.0, moments[1].value - moments[0].value ** 2))
    return {"setting": source.setting, "metrics": {"latent_std": spread, "images": float(total)}}


def decode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 2: latents back to images, under measurement guidance or one of its controls."""
    latents_key, setting = _chosen(job, context)
    total = count_images(context, "encode", latents_key)
    _sample(job, context, folder, total)
    _draw_beginning(job, context, folder)
    source = str(context.store.manifest("encode", latents_key)["needs"]["images"])
    change = _Mean()
    for start, stop, _ in shards_in(folder):
        images, _labels = read_rows(folder, range(start, stop))
        sources, _labels = load_images(context, "generate", source, range(start, stop))
        change.add((images - sources).square())
    stage_one = stored_record(context.store, "encode", latents_key).setting
    return {
        "setting": {**stage_one, **(setting.model_dump(mode="json") if setting else {})},
        "metrics": {"rms_change": math.sqrt(change.value), "images": float(total)},
    }


def _draw_strengths(job: Job, context: Context, folder: Path) -> None:
    """``strengths.png``: the first image of each class under guidance of rising strength.

    From left to right the stage-1 image, and its latent decoded under STRENGTHS times gamma.
    """
    latents_key, setting = _chosen(job, context)
    if setting is None or not setting.uncertainty_scale:
        return
    _, stop, _ = shards_in(artefact(context, "encode", latents_key))[0]
    rows = range(stop)
    latents, labels = load_images(context, "encode", latents_key, rows)
    source = str(context.store.manifest("encode", latents_key)["needs"]["images"])
    sources, _ = load_images(context, "generate", source, rows)
    chosen = np.sort(np.unique(labels, return_index=True)[1])
    count = len(STRENGTHS)
    total = len(chosen) * count
    sampler = sampler_for(job, context, total, guided=True, latents_key=latents_key)
    repeated = torch.from_numpy(labels[chosen]).repeat_interleave(count)
    made = sampler.decode(
        latents[chosen].repeat_interleave(count, dim=0),
        repeated,
        np.repeat(chosen, count).tolist(),
        setting,
        strengths=setting.uncertainty_scale * torch.tensor(STRENGTHS).repeat(len(chosen)),
    )
    together = torch.cat([sources[chosen], made])
    together_labels = np.concatenate([labels[chosen], repeated.numpy()])
    with replacing(folder / STRENGTHS_FILE) as temporary:
        draw_grid(temporary, together, together_labels, sampler.trained.num_classes)


class _Mean:
    """A mean over values that are never in memory at once."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: torch.Tensor) -> None:
        self.total += float(values.sum(dtype=torch.float64))
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.count


def _draw_beginning(job: Job, context: Context, folder: Path) -> None:
    """``grid.png`` of the first shard: classes are evenly mixed, it has some of each."""
    start, stop, _ = shards_in(folder)[0]
    images, labels = read_rows(folder, range(start, stop))
    draw_grid(folder / "grid.png", images, labels, info_of(job, context).num_classes)
