"""Job ``confirm``: what a search found, scored once more with fresh seeds and other networks.

On validation data only, and for the report only: no cell depends on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mgdm_ray.evaluation.selection_bias import Confirmed
from mgdm_ray.pipeline.job import fits_per_setting
from mgdm_ray.pipeline.tasks.base import (
    Context,
    JobError,
    Outcome,
    artefact,
    save_json,
    stored_record,
)
from mgdm_ray.pipeline.trials import Trial, read_trials
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.files import replacing

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

CONFIRM_FILE = "confirm.json"

T = TypeVar("T")


class Scorer(Protocol):
    """What scores a setting: jobs.trial.TrialScorer."""

    def decode(self, setting: Mapping[str, Any]) -> Any:
        """The images of this setting, as ``score`` wants them."""

    def score(self, network: str, added: Any, repeat: int) -> float:
        """Validation score of ``network``, whose fresh seed is number ``repeat``."""


def trial_scorer(job: Job, context: Context) -> Scorer:
    from mgdm_ray.pipeline.tasks.trial import (
        TrialScorer,  # torch, which tests of the rest do not need
    )

    return TrialScorer(job, context)


@dataclass(frozen=True)
class Score:
    """One that is to be had: a setting, a network, a fresh seed."""

    setting: Mapping[str, Any]
    network: str
    seed: int

    def path(self, work: Path) -> Path:
        """By what it depends on, not by the trial's number: a search that is lost and made anew
        may give the number to another setting."""
        return work / f"{content_key([dict(self.setting), self.network, self.seed])}.json"


def confirm(
    job: Job,
    context: Context,
    folder: Path,
    make_scorer: Callable[[Job, Context], Scorer] = trial_scorer,
) -> Outcome:
    """Score the chosen setting and others of all ranks; write ``confirm.json``.

    Every score is kept in the scratch folder as soon as it is there, so that a kill costs one.
    Raises JobError where a score is not finite.
    """
    found_by_search = artefact(context, "search", job.needs["search"])  # whole, or JobError
    chosen = stored_record(context.store, "search", job.needs["search"]).setting
    trials = ranked(read_trials(found_by_search), chosen)
    settings = spread(trials, job.inputs["settings"])
    networks, seeds = fits_per_setting(job.inputs)
    scores = _scores(job, context, [trial.setting for trial in settings], make_scorer)
    rows = [
        {
            "number": trial.number,
            "network": network,
            "is_proxy": network in job.inputs["proxies"],
            "seed": seed,
            "score": scores[index, network, seed],
        }
        for index, trial in enumerate(settings)
        for network in networks
        for seed in range(seeds)
    ]
    found = {
        "trials": len(trials),
        "settings": [
            {"number": t.number, "setting": t.setting, "score": t.score} for t in settings
        ],
        "rows": rows,
    }
    save_json(folder / CONFIRM_FILE, found)
    return {"setting": chosen, "split": "val", "metrics": Confirmed.of(found).metrics()}


def ranked(trials: Sequence[Trial], chosen: Mapping[str, Any]) -> list[Trial]:
    """The finished trials of a search, each setting once: the chosen one, then by falling score."""
    done = [(trial.score, trial) for trial in trials if trial.status == "done"]
    done.sort(key=lambda found: (found[1].setting != chosen, -(found[0] or 0.0), found[1].number))
    by_setting: dict[str, Trial] = {}
    for _, trial in done:
        by_setting.setdefault(json.dumps(trial.setting, sort_keys=True), trial)
    return list(by_setting.values())


def spread(trials: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of them, evenly: the first one, and the last one where there are two."""
    count = min(count, len(trials))
    last = max(1, count - 1)
    return [trials[round(index * (len(trials) - 1) / last)] for index in range(count)]


def _scores(
    job: Job,
    context: Context,
    settings: Sequence[Mapping[str, Any]],
    make_scorer: Callable[[Job, Context], Scorer],
) -> dict[tuple[int, str, int], float]:
    """By setting, network and seed; those that the scratch folder holds are not computed again."""
    store = context.store
    work = store.work(job.kind, job.key)
    work.mkdir(parents=True, exist_ok=True)
    store.bring(work)
    networks, seeds = fits_per_setting(job.inputs)
    wanted = {
        (index, network, seed): Score(setting, network, seed)
        for index, setting in enumerate(settings)
        for network in networks
        for seed in range(seeds)
    }
    found: dict[tuple[int, str, int], float] = {}
    scorer: Scorer | None = None
    decoded: tuple[int, Any] = (-1, None)
    for done, (place, score) in enumerate(wanted.items()):
        path = score.path(work)
        if not path.exists():
            context.progress(done, len(wanted), f"setting {place[0] + 1}, {score.network}")
            scorer = scorer or make_scorer(job, context)
            if decoded[0] != place[0]:
                decoded = place[0], scorer.decode(score.setting)
            _keep(path, scorer.score(score.network, decoded[1], score.seed), score)
            store.share(path)
        found[place] = float(json.loads(path.read_text(encoding="utf-8")))
    return found


def _keep(path: Path, value: float, score: Score) -> None:
    if not math.isfinite(value):
        raise JobError(
            f"the score of {score.network} with seed {score.seed} is not finite under the setting "
            f"{json.dumps(dict(score.setting), sort_keys=True)}"
        )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")
