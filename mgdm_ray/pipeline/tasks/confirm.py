"""Job ``confirm``: settings of a search scored again with fresh seeds and other networks.

On validation data, for the report only: no cell depends on it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mgdm_ray.evaluation.selection_bias import Confirmed
from mgdm_ray.pipeline.job import fits_per_setting
from mgdm_ray.pipeline.tasks.base import (
    Context,
    JobError,
    MakeScorer,
    Outcome,
    Scorer,
    artefact,
    save_json,
    stored_record,
    trial_scorer,
)
from mgdm_ray.pipeline.trials import Trial, read_trials
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.files import replacing

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

CONFIRM_FILE = "confirm.json"

T = TypeVar("T")


def confirm(
    job: Job, context: Context, folder: Path, make_scorer: MakeScorer = trial_scorer
) -> Outcome:
    """Score the chosen setting and others of all ranks; write ``confirm.json``.

    A kill costs one score at most. JobError where a score is not finite.
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
    job: Job, context: Context, settings: Sequence[Mapping[str, Any]], make_scorer: MakeScorer
) -> dict[tuple[int, str, int], float]:
    """By setting, network and seed; scores in the scratch folder are not computed again."""
    store = context.store
    work = store.work(job.kind, job.key)
    work.mkdir(parents=True, exist_ok=True)
    store.bring(work)
    networks, seeds = fits_per_setting(job.inputs)
    total = len(settings) * len(networks) * seeds
    found: dict[tuple[int, str, int], float] = {}
    scorer: Scorer | None = None
    for index, setting in enumerate(settings):
        images = None
        for network, seed in itertools.product(networks, range(seeds)):
            # Not by the trial's number, which another search may give to another setting.
            path = work / f"{content_key([dict(setting), network, seed])}.json"
            if not path.exists():
                context.progress(len(found), total, f"setting {index + 1}, {network}")
                scorer = scorer or make_scorer(job, context)
                images = scorer.decode(setting) if images is None else images
                score = scorer.score(network, images, seed)
                if not math.isfinite(score):
                    raise JobError(
                        f"the score of {network} with seed {seed} is not finite for the setting "
                        f"{json.dumps(dict(setting), sort_keys=True)}"
                    )
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(score), encoding="utf-8")
                store.share(path)
            found[index, network, seed] = float(json.loads(path.read_text(encoding="utf-8")))
    return found
