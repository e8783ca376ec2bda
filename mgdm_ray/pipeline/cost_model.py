"""What a job costs, estimated from finished jobs and probes in the store."""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from mgdm_ray.config import InputError, steps_of
from mgdm_ray.pipeline.job import CELLS, FITS, KINDS, SCORINGS, Job, fits_per_setting
from mgdm_ray.pipeline.trials import TRIALS_FILE, read_trials
from mgdm_ray.storage.files import replacing
from mgdm_ray.storage.records import Record

if TYPE_CHECKING:
    from mgdm_ray.storage.store import Store

PROBES_FILE = "probes.json"
PROBE_FIELDS = {"kind", "family", "seconds_per_work", "bytes_per_item"}
ASSUMED_FIXED = {"fit_denoiser": 30.0, "fit_guide": 30.0, "search": 10.0}
"""Seconds to start workers and import, if no finished job shows them."""
ASSUMED_FIXED_ELSE = 1.0


# --- work of a job --------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A job of the plan or of the store."""

    kind: str
    inputs: Mapping[str, Any]
    needs: Mapping[str, str]
    images: float | None = None
    """How many it made, if known."""

    @staticmethod
    def of(job: Job) -> Node:
        return Node(job.kind, job.inputs, job.needs)


@dataclass(frozen=True)
class Effort:
    """Jobs of one ``family`` take ``seconds = fixed + rate * work`` with one ``rate``."""

    kind: str
    family: str
    dataset: str
    work: float
    """Optimiser steps x batch; images x steps (x forwards); trials; settings."""
    items: float
    """Bytes are proportional to it: images, trials, settings, 1."""


def effort(node: Node, nodes: Mapping[str, Node], train_images: Mapping[str, int]) -> Effort | None:
    """The work of a job; None if ``nodes`` lack one of its needs or its images are not known.

    ``train_images``: number of training images by dataset.
    """
    try:
        dataset = {k: v for k, v in node.inputs["dataset"].items() if k != "content"}
        family, work, items = _measure(node, nodes, train_images)
        text = json.dumps([dataset["size"], family], sort_keys=True)
        return Effort(
            node.kind, text, json.dumps(dataset, sort_keys=True), float(work), float(items)
        )
    except UNREADABLE:
        return None


def _measure(
    node: Node, nodes: Mapping[str, Node], train_images: Mapping[str, int]
) -> tuple[list[Any], float, float]:
    inputs = node.inputs
    if node.kind in FITS:
        train = inputs["train"]
        family = [train["unet"], train["precision"], train.get("dropout", 0.0)]
        return family, train["steps"] * train["batch_size"], 1.0
    if node.kind in CELLS:
        config = inputs["downstream"]
        policy = "standard" if inputs["arm"] == "augment" else config.get("augment", "none")
        family = [inputs["network"], policy]
        real = 0 if "steps" in config else train_images[inputs["dataset"]["name"]]
        return family, steps_of(config, real) * config["batch_size"], 1.0
    if node.kind == "fit_judge":
        judge = inputs["judge"]
        return [judge["network"]], judge["steps"] * judge["batch_size"], 1.0
    images = images_of(node, nodes, train_images)
    if node.kind == "assess":  # the judge, and neighbours among the training images
        network = nodes[node.needs["judge"]].inputs["judge"]["network"]
        return [network, train_images[inputs["dataset"]["name"]]], images, images
    steps = max(1.0, inputs["num_inference_steps"] * inputs.get("strength", 1.0))
    unets = [
        nodes[node.needs[role]].inputs["train"]["unet"] if role in node.needs else None
        for role in ("denoiser", "guide")
    ]
    family = [*unets, inputs["precision"], *(["stored"] if "encode" in inputs else [])]
    family += inputs.get("guidance_interval", [])
    if node.kind == "generate":
        return [*family, inputs["guidance_scale"] != 1], images * steps, images
    if node.kind == "encode":
        return family, images * steps * (1 + inputs["inversion_iterations"]), images
    if node.kind == "decode":
        return [*family, inputs["arm"], _two_forwards(node, nodes)], images * steps, images
    settings = inputs["settings" if node.kind == "confirm" else "trials"]
    fits = [*fits_per_setting(inputs), inputs["downstream"]]
    fits += [inputs["recipes"]] if "recipes" in inputs else []
    family = [*family, *fits, images * steps, _two_forwards(node, nodes)]
    return family, settings, settings


def _two_forwards(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Whether stage 2 has classifier-free guidance."""
    if node.kind == "search":
        return bool(node.inputs["space"]["decode_guidance_scale"] != 1)
    if node.inputs.get("arm") == "roundtrip":
        return False
    if "search" in node.needs:
        return _two_forwards(nodes[node.needs["search"]], nodes)
    return bool(node.inputs["setting"]["decode_guidance_scale"] != 1)


def images_of(node: Node, nodes: Mapping[str, Node], train_images: Mapping[str, int]) -> float:
    """How many images a sampling job makes, or a setting's score needs; KeyError if unknown."""
    if node.images is not None:
        return node.images
    if node.kind in ("generate", "assess"):
        real = train_images[node.inputs["dataset"]["name"]]
        if "synthetic" in node.inputs:
            drawn: float = max(1, round(node.inputs["synthetic"]["ratio"] * real))
        else:
            need = node.needs.get("images") or node.needs["images/0"]
            drawn = images_of(nodes[need], nodes, train_images)
        most: float = node.inputs.get("ratio", math.inf) * real
        return min(drawn, most)
    source = "images" if node.kind == "encode" else "latents/0"
    images = images_of(nodes[node.needs[source]], nodes, train_images)
    wanted: float | None = node.inputs["images"] if node.kind in SCORINGS else None
    return images if wanted is None else min(images, wanted)


# --- finished jobs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Measured cost of a finished job or a probe."""

    effort: Effort
    seconds: float
    """Proportional to the work: of all trials of a search, of all workers of a fit if ``fixed`` is
    known."""
    fixed: float | None = None
    """Other seconds, if known."""
    bytes: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a job."""

    seconds: float
    """Of each of its lanes."""
    bytes: float | None
    basis: Literal["equal jobs", "scaled", "probe"]
    jobs: int
    """How many finished jobs it is from."""


class Figures:
    """Estimates of jobs from all measured costs."""

    def __init__(self, finished: Iterable[Figure], probes: Iterable[Figure] = ()) -> None:
        self.finished, self.probes = _by_family(finished), _by_family(probes)
        self.fixed: dict[str, float] = {}
        for (kind, _), rows in self.finished.items():
            # The minimum, because it includes the wait for workers.
            known = [row.fixed for row in rows if row.fixed is not None]
            if known:
                self.fixed[kind] = min([*known, self.fixed.get(kind, math.inf)])
        self.estimate = cache(self._estimate)

    def _estimate(self, asked: Effort, share: int) -> Estimate | None:
        """The median of equal jobs; else of the nearest in size, scaled; else a probe's; else None.

        ``share``: number of lanes, or of workers of a training.
        """
        family = (asked.kind, asked.family)
        rows, probe = self.finished.get(family, []), False
        if not rows:
            rows, probe = self.probes.get(family, []), True
        rows = _nearest(rows, asked)
        if not rows:
            return None
        apart = [row for row in rows if row.fixed is not None]
        rows = apart or rows
        seconds = median(row.seconds * asked.work / row.effort.work for row in rows)
        if asked.kind == "search":  # 3 trials on 2 lanes take as long as 4
            seconds *= math.ceil(asked.work / share) * share / asked.work
        if probe or apart:  # else the seconds are those of the workers together
            seconds = seconds / share + self._around(asked.kind)
        sizes = [
            row.bytes * asked.items / row.effort.items for row in rows if row.bytes is not None
        ]
        return Estimate(
            seconds,
            median(sizes) if sizes else None,
            "probe" if probe else "equal jobs" if rows[0].effort.work == asked.work else "scaled",
            0 if probe else len(rows),
        )

    def _around(self, kind: str) -> float:
        return self.fixed.get(kind, ASSUMED_FIXED.get(kind, ASSUMED_FIXED_ELSE))


def _by_family(figures: Iterable[Figure]) -> dict[tuple[str, str], list[Figure]]:
    found: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        found[figure.effort.kind, figure.effort.family].append(figure)
    return dict(found)


def _nearest(rows: Sequence[Figure], asked: Effort) -> list[Figure]:
    """Those with the nearest work, of the same dataset if there are any."""

    def distance(row: Figure) -> tuple[float, bool]:
        ratio = abs(math.log(row.effort.work / asked.work))
        return round(ratio, 6), row.effort.dataset != asked.dataset

    least = min((distance(row) for row in rows), default=None)
    return [row for row in rows if distance(row) == least]


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""Errors from a removed need, a missing dataset or another program's manifest: no estimate."""


def figures_in(
    store: Store, manifests: Mapping[str, Mapping[str, Any]], train_images: Mapping[str, int]
) -> list[Figure]:
    """Costs of all finished artefacts; ``manifests`` by key (see ``manifests_in``)."""
    nodes = {}
    for key, m in manifests.items():
        with contextlib.suppress(*UNREADABLE):
            nodes[key] = Node(
                m["kind"], m["inputs"], m["needs"], m["record"]["metrics"].get("images")
            )
    found = []
    for key, node in nodes.items():
        its = effort(node, nodes, train_images)
        with contextlib.suppress(*UNREADABLE):
            if its is not None and (figure := _figure(store, manifests[key], its)):
                found.append(figure)
    return found


def _figure(store: Store, manifest: Mapping[str, Any], its: Effort) -> Figure | None:
    seconds = float(manifest["record"]["seconds"])
    if not 0 < seconds < math.inf or not 0 < its.work < math.inf:
        return None
    size = sum(int(file["bytes"]) for file in manifest["files"].values())
    inner = _work_seconds(store, manifest, its.work)
    fixed = None if inner is None else max(0.0, seconds - inner[1])
    return Figure(its, seconds if inner is None else inner[0], fixed, size)


def manifests_in(store: Store) -> dict[str, dict[str, Any]]:
    """Manifests of finished artefacts by key, without damaged and unreadable ones."""
    found = {}
    for kind, key in store.done():
        if kind in KINDS and not store.verify(kind, key, "sizes"):
            manifest = store.manifest(kind, key)
            if _is_readable(manifest):
                found[key] = manifest
    return found


def _is_readable(manifest: Mapping[str, Any]) -> bool:
    inputs, needs = manifest.get("inputs"), manifest.get("needs")
    if not isinstance(inputs, dict) or not isinstance(inputs.get("dataset"), dict):
        return False
    if not isinstance(needs, dict) or not all(isinstance(n, str) for n in needs.values()):
        return False
    try:  # the manifest itself has its key and kind
        Record.from_dict({"key": "", "kind": "", "status": "done", **manifest["record"]})
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _work_seconds(
    store: Store, manifest: Mapping[str, Any], work: float
) -> tuple[float, float] | None:
    """(seconds of all the work, seconds of it within the record's) of a fit or a search.

    Their records include the wait for workers. Their artefacts hold the speed of the steps since
    the last resumption, or the seconds of each trial; None if they do not.
    """
    kind, seconds = manifest["kind"], float(manifest["record"]["seconds"])
    if kind in FITS:
        speed = _read(store, manifest, "speed.json")
        if not speed:
            return None
        share = work / manifest["inputs"]["train"]["batch_size"] / speed["steps"]
        return speed["seconds"] * share * speed["workers"], speed["seconds"]
    if kind == "search":
        held = TRIALS_FILE in manifest["files"]
        trials = read_trials(store.here(kind, manifest["key"])) if held else ()
        total = sum(trial.seconds for trial in trials)
        if not total:
            return None
        at_once = math.ceil(total / seconds)  # because they ran within the search
        return total, total / at_once
    return None


def _read(store: Store, manifest: Mapping[str, Any], name: str) -> Any:
    if name not in manifest["files"]:
        return None
    path = store.here(manifest["kind"], manifest["key"]) / name
    return json.loads(path.read_text(encoding="utf-8"))


def read_probes(root: Path) -> list[dict[str, Any]]:
    """Rows of PROBE_FIELDS (``bytes_per_item`` may be null); empty without a file.

    Raises InputError for other content.
    """
    path = root / PROBES_FILE
    if not path.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        sound = all(set(row) == PROBE_FIELDS for row in rows)
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{path}: not a list of probes; remove it, then run --plan --probe again")
    return rows


def add_probe(root: Path, row: Mapping[str, Any]) -> None:
    """Add a row, or replace that of the same family, in one atomic step."""
    same = (row["kind"], row["family"])
    rows = [old for old in read_probes(root) if (old["kind"], old["family"]) != same]
    with replacing(root / PROBES_FILE) as temporary:
        temporary.write_text(json.dumps([*rows, row], indent=1), encoding="utf-8")


def probe_figures(rows: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """Costs from the rows of ``read_probes``."""
    return [
        Figure(
            Effort(row["kind"], row["family"], "", 1.0, 1.0),
            row["seconds_per_work"],
            bytes=row["bytes_per_item"],
        )
        for row in rows
    ]
