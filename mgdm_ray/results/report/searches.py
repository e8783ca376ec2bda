"""Section on the searches: the chosen settings, and how far their scores can be trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from markupsafe import Markup

from mgdm_ray.evaluation.selection_bias import FEWEST, FEWEST_SEEDS, Confirmed
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import words
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import searches as plots
from mgdm_ray.results.report.jobs import best_trials, where_of
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, interval, number
from mgdm_ray.storage.records import Record

PARAMETERS = {
    "measurement": "measurement",
    "stage_one": "stage-1 scales",
    "uncertainty_scale": f"strength {words.GAMMA} in its range",
}
OLD = "this older search did not store it"


def search(report: Builder) -> Markup | None:
    searches = [r for r in report.records if r.kind == "search"]
    if not report.trials and not searches:
        return None
    best = best_trials(report.trials)
    confirmed = _confirmed(report)
    _save_trials(report)
    if confirmed:
        _save_confirmed(report, confirmed)
    header = ["search", "trial", "setting", "score", "status", "time"]
    rows = [_trial_row(t, best.get(t.where) is t) for t in report.trials]
    means = {where: found.means for where, found in confirmed.items()}
    importance, unknown = _importance(report, [r for r in searches if r.status == "done"])
    return render(
        "search",
        best=_best_table(report, best, confirmed) if best else "",
        optimism={k: say("optimism", found, FEWEST_SEEDS) for k, found in confirmed.items()},
        transfer={k: say("transfer", found, FEWEST) for k, found in confirmed.items()},
        plots=_trial_plots(report, best),
        importance=importance,
        unknown=unknown,
        confirm=report.plot("confirm", plots.confirmed(means)) if means else "",
        trials=words.counted(len(report.trials), "trial") if report.trials else "",
        listing=report.table("trials-listing", header, rows, words=(2,)),
    )


def _confirmed(report: Builder) -> dict[str, Confirmed]:
    """By search, if its settings were scored again."""
    found = {}
    for record in report.records:
        if record.kind == "confirm" and record.status == "done":
            content = report.json(record, "confirm.json")
            if content is not None:
                found[where_of(record)] = Confirmed.of(content)
    return found


def _best_table(
    report: Builder, best: Mapping[str, Trial], confirmed: Mapping[str, Confirmed]
) -> Markup:
    header = ["search", "best setting", "score", "trials"]
    if confirmed:
        header[3:3] = ["fresh seeds", "too high by", "95 % interval"]
    rows: list[Row] = []
    for where, trial in best.items():
        fresh: list[Cell] = [Cell(words.DASH)] * 3 if confirmed else []
        if again := confirmed.get(where):
            chosen = again.chosen
            optimism = number(chosen.value, sign=True)
            fresh = [number(chosen.fresh), optimism, interval(*again.bounds)]
        trials = sum(other.where == where for other in report.trials)
        score = number(trial.score)
        rows.append([where, words.setting_text(trial.setting), score, *fresh, str(trials)])
    return report.table("searches", header, rows, caption="The chosen settings", words=(1,))


def _importance(report: Builder, done: Sequence[Record]) -> tuple[str, str]:
    """The plot, and for each search without importance the reason."""
    shares: dict[str, dict[str, float]] = {}
    reasons: list[str] = []
    rows: list[list[object]] = []
    for record in done:
        where = where_of(record)
        found = report.json(record, "importance.json") or {"reason": OLD, "importance": {}}
        if found["importance"]:
            shares[where] = {PARAMETERS.get(k, k): v for k, v in found["importance"].items()}
            rows += [[where, k, v, found["trials"]] for k, v in found["importance"].items()]
        else:
            why = found["reason"].replace(" differs between the trials", " varies")
            reasons.append(f"{where}: importance not computed, because {why}")
    unknown = "; ".join(reasons)
    if not shares:
        return "", unknown
    report.table_file("importance", ["search", "parameter", "importance", "trials"], rows)
    return report.plot("importance", plots.importance(shares)), unknown


def _save_trials(report: Builder) -> None:
    header = ["search", "number", "status", "score", "seconds", "setting", "per_network"]
    rows = [
        [t.where, t.number, t.status, t.score, t.seconds, json.dumps(dict(t.setting)),
         json.dumps(dict(t.per_network))]
        for t in report.trials
    ]  # fmt: skip
    report.table_file("trials", header, rows)


def _save_confirmed(report: Builder, confirmed: Mapping[str, Confirmed]) -> None:
    rows: list[list[object]] = []
    for where, found in confirmed.items():
        rho, chosen = found.transfer, found.chosen
        scores = [chosen.claimed, chosen.fresh, chosen.value, chosen.low, chosen.high, found.shared]
        ranks = [rho.rho, rho.low, rho.high, rho.p] if rho else [math.nan] * 4
        numbers = [*scores, *ranks, found.repeat.rho]
        rows.append([where, found.numbers[0], *numbers, len(found.numbers)])
    header = ["search", "number", "score", "fresh_score", "optimism", "low", "high",
              "shared_optimism", "spearman", "spearman_low", "spearman_high", "spearman_p",
              "repeat_spearman", "settings"]  # fmt: skip
    report.table_file("selection", header, rows)
    report.table_file(
        "confirm",
        ["search", "number", "score", "fresh_score_of_proxies", "fresh_score_of_others"],
        [
            [where, number, *means]
            for where, found in confirmed.items()
            for number, means in zip(found.numbers, found.means, strict=True)
        ],
    )


def _trial_row(trial: Trial, best: bool) -> Row:
    networks = ", ".join(f"{n} {v:.3f}" for n, v in trial.per_network.items())
    small = networks if len(trial.per_network) > 1 else ""
    return [
        trial.where,
        str(trial.number),
        words.setting_text(trial.setting),
        replace(number(trial.score, class_="best" if best else ""), small=small),
        trial.status,
        Cell(words.duration(trial.seconds), trial.seconds),
    ]


def _trial_plots(report: Builder, best: Mapping[str, Trial]) -> dict[str, str]:
    rows = [
        {
            "where": t.where,
            "measurement": str(t.setting.get("measurement", "?")),
            "gamma": float(t.setting["uncertainty_scale"]),
            "guidance": float(t.setting.get("guidance_scale", 1.0)),
            "score": t.score,
            "chosen": best.get(t.where) is t,
        }
        for t in report.trials
        if t.score is not None and t.setting.get("uncertainty_scale") is not None
    ]
    if not rows:
        return {}
    frame = pd.DataFrame(rows)
    found = {"scatter": report.plot("search", plots.search_scatter(frame))}
    guided = frame[frame["gamma"] > 0]
    if len(guided):
        found["heat"] = report.plot("heat-map", plots.heat_map(guided))
    return found
