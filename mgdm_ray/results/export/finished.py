"""A finished study in its storage: its models and the settings it chose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mgdm_ray.classifiers import weights
from mgdm_ray.config import (
    GUIDED_ARMS,
    DatasetConfig,
    GuidanceSetting,
    InputError,
    SamplingConfig,
    StudyConfig,
    apply_override,
    load_study,
    require_known,
)
from mgdm_ray.config.file import read_study
from mgdm_ray.config.resolved import RESOLVED_FILE
from mgdm_ray.pipeline.job import Job, of_draw
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.staging import bring_notes, open_storage
from mgdm_ray.pipeline.tasks.base import JobError
from mgdm_ray.pipeline.tasks.guide_levels import levels_of
from mgdm_ray.pipeline.warm_start import warm_points
from mgdm_ray.results.export.models_file import ModelsFile
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store

STAGE_ONE = ("guidance_scale", "classifier_scale")


@dataclass(frozen=True)
class Chosen:
    """How images are sampled."""

    sampling: SamplingConfig
    """Stage 1 and the timestep grid."""
    setting: GuidanceSetting | None
    """Stage 2; None for unguided arms."""
    origin: str
    """For people: the study's, the search's, changed by hand."""


def setting_values(of: Chosen | ModelsFile) -> dict[str, Any]:
    """The scales of stage 1 and the setting of stage 2, as a record's ``setting`` has them."""
    scales = {name: getattr(of.sampling, name) for name in STAGE_ONE}
    return {**scales, **(of.setting.model_dump(mode="json") if of.setting else {})}


@dataclass(frozen=True)
class FinishedStudy:
    """A study and its storage."""

    config: StudyConfig
    store: Store
    plan: Plan
    given: str
    """The study as the user named it."""

    @staticmethod
    def open(study: str, storage: str | None) -> FinishedStudy:
        """``study``: a study file, or the name of a study in ``storage``.

        Raises InputError if there is none, or if its data is missing.
        """
        from mgdm_ray.data.load import data_source

        if study.endswith((".yaml", ".yml")) or Path(study).is_file():
            config = load_study(study)
            store = open_storage(storage or config.storage, write=False)
        else:
            store = open_storage(storage or "runs", write=False)
            config = _resolved(store, study)
        bring_notes(store, config)
        prints = {d.name: data_source(d, config.data_dir).fingerprint() for d in config.datasets}
        if absent := [name for name, value in prints.items() if value == "absent"]:
            raise InputError(
                f"dataset {', '.join(absent)} not found; it is needed to identify finished jobs: "
                "set data_dir in the study, or MGDM_DATA_DIR"
            )
        contents = {**prints, **weights.weights_fingerprints(config)}
        plan = make_plan(config, contents, warm_points(config, store.root))
        return FinishedStudy(config, store, plan, study)

    def dataset(self, name: str | None) -> DatasetConfig:
        """The dataset ``name``, or the only one, prepared as the jobs read it.

        Raises InputError for an unknown or missing name.
        """
        from mgdm_ray.data.sources.prepare import prepare

        known = {d.name: d for d in self.config.datasets}
        if name is None and len(known) > 1:
            raise InputError(f"--dataset: the study has several, choose one of {', '.join(known)}")
        chosen = known[known_name("--dataset", name or next(iter(known)), "dataset", known)]
        return prepare(chosen, self.config.data_dir, self.store.root / "data")

    def jobs(self, kind: str, dataset: str, arm: str | None = None) -> list[Job]:
        """Those of the first draw, where there is one for each draw of synthetic images."""
        found = [j for j in self.plan.jobs.values() if (j.kind, j.dataset) == (kind, dataset)]
        first = of_draw(found, self.config.first_draw)
        return [job for job in first if arm is None or job.arm == arm]

    def records(self, kind: str, dataset: str) -> list[Record]:
        """The records of those jobs that are done."""
        jobs = self.jobs(kind, dataset)
        return [self.record(job) for job in jobs if self.store.is_done(kind, job.key)]

    def record(self, job: Job) -> Record:
        return Record.from_dict(self.store.manifest(job.kind, job.key)["record"])

    def model(self, kind: str, dataset: str) -> Job | None:
        """The finished job ``fit_denoiser`` or ``fit_guide``; None if the study has none."""
        jobs = self.jobs(kind, dataset)
        return self.finished(jobs[0]) if jobs else None

    def finished(self, job: Job) -> Job:
        """``job``, if it is complete and undamaged in the store; else InputError."""
        resolved = str(self.store.root / "studies" / self.config.name / RESOLVED_FILE)
        from_file = Path(self.given).is_file()
        file = self.given if from_file else resolved
        again = f"python -m mgdm_ray.study {file} --storage {self.store.location}"
        if not self.store.is_done(job.kind, job.key):
            by_name = f" (if it ran with --set, give its name, {self.config.name}, not the file)"
            raise InputError(
                f"study {self.config.name} is not finished: job '{job.label}' is missing in "
                f"{self.store.location}; run it first: {again}"
                + (by_name if from_file and not file.endswith(RESOLVED_FILE) else "")
            )
        self.store.here(job.kind, job.key)
        if wrong := self.store.verify(job.kind, job.key):
            raise InputError(
                f"artefact of '{job.label}' is damaged: {wrong}; compute it again: {again}"
            )
        return job

    def search(self, dataset: str, network: str | None) -> Job | None:
        """The search of a dataset, or of one of its networks; None if the study has none."""
        by_network = {job.network: job for job in self.jobs("search", dataset)}
        if not by_network or None in by_network:
            return by_network.get(None)
        names = [str(name) for name in by_network]
        if network is None:
            raise InputError(
                "--network: the study has one search per network, choose whose setting to use: "
                + ", ".join(names)
            )
        return by_network[known_name("--network", network, "network", names)]

    def choose(
        self, dataset: str, arm: str, network: str | None = None, changes: Sequence[str] = ()
    ) -> Chosen:
        """The study's setting of ``arm``, with ``changes`` (``key=value``) applied.

        Raises InputError for changes that are unknown, out of range, or without effect.
        """
        search, candidates = self.search(dataset, network), self.config.stage_one()
        values: dict[str, Any] = dict(zip(STAGE_ONE, candidates[0], strict=True))
        values |= self.config.setting.model_dump(mode="json")
        origin = "the study's"
        if search is not None and (arm in GUIDED_ARMS or len(candidates) > 1):
            values |= self.record(self.finished(search)).setting
            origin = "the search's"
        given: dict[str, Any] = {}
        for change in changes:
            apply_override(given, change)
            origin = f"{origin.partition(',')[0]}, changed by hand"
        allowed = [*STAGE_ONE, *(GuidanceSetting.model_fields if arm in GUIDED_ARMS else ())]
        for name in given:
            known_name(f"--set {name} (arm {arm})", name, "key", allowed)
        values |= given
        if arm in GUIDED_ARMS and values["interval"] == "auto":
            guide = self.model("fit_guide", dataset)
            if guide is not None:  # else the request is refused
                values["interval"] = _levels(self.store.folder(guide.kind, guide.key))
        sampling, setting = self._validated(values)
        return Chosen(sampling, setting if arm in GUIDED_ARMS else None, origin)

    def _validated(self, values: Mapping[str, Any]) -> tuple[SamplingConfig, GuidanceSetting]:
        """Validate as ``sampling`` and ``setting`` of the study file, without the search: its
        start points must fit the study's own scales."""
        fields = GuidanceSetting.model_fields
        study = {**self.config.model_dump(mode="json"), "search": None}
        study["setting"] = {name: value for name, value in values.items() if name in fields}
        study["sampling"] |= {name: values[name] for name in STAGE_ONE}
        try:
            found = StudyConfig.model_validate(study)
        except ValidationError as error:
            raise InputError(mistakes(error, "--set ", skip=1)) from None
        return found.sampling, found.setting


def _levels(guide: Path) -> tuple[int, int]:
    try:
        return levels_of(guide)
    except JobError as error:
        raise InputError(f"--set interval: {error}") from None


def mistakes(error: ValidationError, prefix: str, skip: int = 0) -> str:
    """A line per mistake: the place below the first ``skip`` keys, the rule, and what came."""
    lines = []
    for mistake in error.errors():
        place = f"{prefix}{'.'.join(map(str, mistake['loc'][skip:]))}".strip()
        message = mistake["msg"].removeprefix("Value error, ")
        came = "" if mistake["type"] == "value_error" else f"; got {mistake['input']!r}"
        lines.append(f"{place}: {message[0].lower()}{message[1:]}{came}")
    return "\n".join(lines)


def known_name(place: str, value: str, what: str, known: Iterable[str]) -> str:
    """``value`` if it is among ``known``; else InputError that names the place."""
    try:
        return require_known(value, what, known)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def label_of(value: int | str, classes: Sequence[str]) -> int:
    """The label of a class name or number (``3`` or ``"3"``); names take precedence.

    Raises InputError for any other.
    """
    if isinstance(value, str):
        if value in classes:
            return classes.index(value)
        if not value.isascii() or not value.isdigit():
            known_name("label", value, "class", classes)
    number = int(value)
    if not 0 <= number < len(classes):
        named = ", ".join(f"{label} {name!r}" for label, name in enumerate(classes))
        raise InputError(f"label {value}: unknown; the {len(classes)} classes are {named}")
    return number


def _resolved(store: Store, name: str) -> StudyConfig:
    """The configuration that the study ``name`` ran with."""
    known = sorted(path.parent.name for path in store.root.glob(f"studies/*/{RESOLVED_FILE}"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is neither an existing study file nor the name of a study")
    path = store.root / "studies" / name / RESOLVED_FILE
    store.bring(path, anew=True)
    if not path.is_file():
        found = f"found: {', '.join(known)}" if known else "it has no studies"
        raise InputError(
            f"no study {name!r} in {store.location} ({found}); give a study file, or --storage"
        )
    config, source = read_study(path)
    # Written before the key existed, it had one draw.
    return config if "draws" in source.data else config.model_copy(update={"draws": "one"})
