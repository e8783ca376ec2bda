"""What a study has finished and others may use: its models, and the settings it chose."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from mgdm_ray.pipeline.plan import Job, Plan, make_plan
from mgdm_ray.pipeline.staging import bring_notes, open_storage
from mgdm_ray.pipeline.warm_start import warm_points
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store

STAGE_ONE = ("guidance_scale", "classifier_scale")
RESOLVED = "study.resolved.yaml"


@dataclass(frozen=True)
class Chosen:
    """How images are made."""

    sampling: SamplingConfig
    """Stage 1 and the grid."""
    setting: GuidanceSetting | None
    """Stage 2; None for arms that ascend nothing."""
    origin: str
    """Where it comes from, for people."""

    def values(self) -> dict[str, Any]:
        """As the study's records have a setting."""
        scales = {name: getattr(self.sampling, name) for name in STAGE_ONE}
        return {**scales, **(self.setting.model_dump(mode="json") if self.setting else {})}


@dataclass(frozen=True)
class FinishedStudy:
    """A study and its storage."""

    config: StudyConfig
    store: Store
    plan: Plan
    given: str
    """What the user called it."""

    @staticmethod
    def open(study: str, storage: str | None) -> FinishedStudy:
        """``study``: a study file, or the name of a study that ran in ``storage``.

        Raises InputError where there is none, or its data is not at hand: without it finished
        jobs cannot be told.
        """
        from mgdm_ray.data.load import fingerprint

        is_file = study.endswith((".yaml", ".yml")) or Path(study).is_file()
        if is_file:
            config = load_study(study)
            store = open_storage(storage or config.storage, write=False)
        else:
            store = open_storage(storage or "runs", write=False)
            config = _resolved(store, study)
        bring_notes(store, config)
        prints = {d.name: fingerprint(d, config.data_dir) for d in config.datasets}
        absent = [name for name, value in prints.items() if value == "absent"]
        if absent:
            raise InputError(
                f"the data of {', '.join(absent)} is not here, and without it finished jobs cannot "
                "be told; give data_dir in the study or MGDM_DATA_DIR"
            )
        contents = {**prints, **weights.weights_fingerprints(config)}
        plan = make_plan(config, contents, warm_points(config, store.root))
        return FinishedStudy(config, store, plan, study)

    def dataset(self, name: str | None) -> DatasetConfig:
        """The study's dataset ``name``, or its only one, with the file that jobs read.

        Raises InputError for any other.
        """
        from mgdm_ray.data.sources.prepare import prepare

        known = {d.name: d for d in self.config.datasets}
        if name is None and len(known) > 1:
            raise InputError(f"--dataset: the study has several: {', '.join(known)}; name one")
        try:
            chosen = known[require_known(name or next(iter(known)), "dataset", known)]
        except ValueError as error:
            raise InputError(f"--dataset: {error}") from None
        return prepare(chosen, self.config.data_dir, self.store.root / "data")

    def jobs(self, kind: str, dataset: str, arm: str | None = None) -> list[Job]:
        found = [j for j in self.plan.jobs.values() if (j.kind, j.dataset) == (kind, dataset)]
        return [job for job in found if arm is None or job.arm == arm]

    def model(self, kind: str, dataset: str) -> Job | None:
        """The finished job ``fit_denoiser`` or ``fit_guide``; None where the study has none."""
        jobs = self.jobs(kind, dataset)
        return self.finished(jobs[0]) if jobs else None

    def finished(self, job: Job) -> Job:
        """``job``, whole and unchanged in the store; else InputError that says what to do."""
        again = f"python -m mgdm_ray.study {self._file()} --storage {self.store.location}"
        if not self.store.is_done(job.kind, job.key):
            advice = ""
            if not self.given.endswith(RESOLVED) and self._file() == self.given:
                advice = (
                    f" (if it ran with --set, give its name, {self.config.name}, in place of the "
                    "file)"
                )
            raise InputError(
                f"study {self.config.name} is not finished: the job '{job.label}' is missing in "
                f"{self.store.location}; run it first: {again}{advice}"
            )
        self.store.here(job.kind, job.key)
        wrong = self.store.verify(job.kind, job.key)
        if wrong:
            raise InputError(
                f"the artefact of '{job.label}' is damaged: {wrong}; this computes it anew: {again}"
            )
        return job

    def _file(self) -> str:
        if Path(self.given).is_file():
            return self.given
        return str(self.store.root / "studies" / self.config.name / RESOLVED)

    def record(self, job: Job) -> Record:
        return Record.from_dict(self.store.manifest(job.kind, job.key)["record"])

    def search(self, dataset: str, network: str | None) -> Job | None:
        """The search of a dataset, or of one of its networks; None where the study has none."""
        found = self.jobs("search", dataset)
        if not found:
            return None
        by_network = {job.network: job for job in found}
        if None in by_network:
            return by_network[None]
        names = [str(name) for name in by_network]
        if network is None:
            raise InputError(
                f"--network: the study searched for each network on its own: {', '.join(names)}; "
                "name the one whose setting is wanted"
            )
        try:
            return by_network[require_known(network, "network", names)]
        except ValueError as error:
            raise InputError(f"--network: {error}") from None

    def choose(
        self, dataset: str, arm: str, network: str | None = None, changes: Sequence[str] = ()
    ) -> Chosen:
        """The study's own setting of ``arm``, with ``changes`` (``key=value``) on top.

        Raises InputError for changes that are unknown, out of range, or without effect.
        """
        search, candidates = self.search(dataset, network), self.config.stage_one()
        values = {
            **dict(zip(STAGE_ONE, candidates[0], strict=True)),
            **self.config.setting.model_dump(mode="json"),
        }
        origin = "the study's"
        if search is not None and (arm in GUIDED_ARMS or len(candidates) > 1):
            values |= self.record(self.finished(search)).setting
            origin = "the search's"
        given: dict[str, Any] = {}
        for change in changes:
            apply_override(given, change)
        if given:
            origin += ", changed by hand"
        allowed = [*STAGE_ONE, *(GuidanceSetting.model_fields if arm in GUIDED_ARMS else ())]
        for name in given:
            try:
                require_known(name, "key", allowed)
            except ValueError as error:
                raise InputError(f"--set {name}: {error} (arm {arm})") from None
        sampling, setting = self._validated({**values, **given})
        return Chosen(sampling, setting if arm in GUIDED_ARMS else None, origin)

    def _validated(self, values: dict[str, Any]) -> tuple[SamplingConfig, GuidanceSetting]:
        """As the study file's ``sampling`` and ``setting`` are: together with what they must fit.

        Without the search, whose start points must fit the study's own scales.
        """
        fields = GuidanceSetting.model_fields
        study = {**self.config.model_dump(mode="json"), "search": None}
        study["setting"] = {name: value for name, value in values.items() if name in fields}
        study["sampling"] |= {name: values[name] for name in STAGE_ONE}
        try:
            found = StudyConfig.model_validate(study)
        except ValidationError as error:
            lines = []
            for mistake in error.errors():
                place = ".".join(str(part) for part in mistake["loc"][1:])
                message = mistake["msg"].removeprefix("Value error, ")
                message = message[0].lower() + message[1:]
                came = "" if mistake["type"] == "value_error" else f"; got {mistake['input']!r}"
                lines.append(f"--set {place}: {message}{came}" if place else f"--set: {message}")
            raise InputError("\n".join(lines)) from None
        return found.sampling, found.setting


def _resolved(store: Store, name: str) -> StudyConfig:
    """The configuration that the study ``name`` ran with."""
    known = sorted(path.parent.name for path in store.root.glob(f"studies/*/{RESOLVED}"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is neither a study file that exists nor the name of a study")
    path = store.root / "studies" / name / RESOLVED
    store.bring(path, anew=True)
    if not path.is_file():
        there = f"there are: {', '.join(known)}" if known else "there is none at all yet"
        raise InputError(
            f"no study {name!r} in {store.location}: {there}; give a study file, or --storage"
        )
    return load_study(path)
