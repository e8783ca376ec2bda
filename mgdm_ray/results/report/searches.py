"""Section on the searches: the chosen settings, and how far their scores can be trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from markupsafe import Markup

from mgdm_ray.evaluation.selection_bias import FEWEST, FEWEST_SEEDS, Agreement, Confirmed
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import words
from mgdm_ray.results.report.artefacts import best_trials, where_of
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import searches as plots
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, interval, number
from mgdm_ray.storage.records import Record

PARAMETERS = {
    "measurement": "measurement",
    "stage_one": "stage-1 scales",
    "uncertainty_scale": f"strength {words.GAMMA} in its range",
}
OLD = "this older search did not store it"
UNKNOWN = Agreement(math.nan, math.nan, math.nan, math.nan, 0)


def search(report: Builder) -> Markup | None:
    searches = [r for r in report.records if r.kind == "search"]
    if not report.trials and not searches:
        return None
    best = best_trials(report.trials)
    confirmed = {
        where_of(record): Confirmed.of(content)
        for record in report.records
        if record.kind == "confirm" and record.status == "done"
        if (content := report.json(record, "confirm.json")) is not None
    }
    _save(report, confirmed)
    means = {where: found.means for where, found in confirmed.items()}
    importance, unknown = _importance(report, [r for r in searches if r.status == "done"])
    return render(
        "search",
        best=_best_table(report, best, confirmed),
        optimism={k: say("optimism", found, FEWEST_SEEDS) for k, found in confirmed.items()},
        transfer={k: say("transfer", found, FEWEST) for k, found in confirmed.items()},
        plots=_trial_plots(report, best),
        importance=importance,
        unknown=unknown,
        confirm=report.plot("confirm", plots.confirmed(means)) if means else "",
        trials=words.counted(len(report.trials), "trial") if report.trials else "",
        listing=_listing(report, best),
    )


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
    rows: list[dict[str, object]] = []
    for record in done:
        where = where_of(record)
        found = report.json(record, "importance.json") or {"reason": OLD, "importance": {}}
        if found["importance"]:
            shares[where] = {PARAMETERS.get(k, k): v for k, v in found["importance"].items()}
            for k, v in found["importance"].items():
                row = {"search": where, "parameter": k, "importance": v, "trials": found["trials"]}
                rows.append(row)
        else:
            why = found["reason"].replace(" differs between the trials", " varies")
            reasons.append(f"{where}: importance not computed, because {why}")
    report.table_file("importance", rows)
    plot = report.plot("importance", plots.importance(shares)) if shares else ""
    return plot, "; ".join(reasons)


def _save(report: Builder, confirmed: Mapping[str, Confirmed]) -> None:
    """What the page does not show: every trial, and the settings that were scored again."""
    trials = [
        {"search": t.where, "number": t.number, "status": t.status, "score": t.score,
         "seconds": t.seconds, "setting": json.dumps(dict(t.setting)),
         "per_network": json.dumps(dict(t.per_network))}
        for t in report.trials
    ]  # fmt: skip
    report.table_file("trials", trials)
    selection, settings = [], []
    for where, found in confirmed.items():
        rho, chosen = found.transfer or UNKNOWN, found.chosen
        selection.append(
            {"search": where, "number": found.numbers[0], "score": chosen.claimed,
             "fresh_score": chosen.fresh, "optimism": chosen.value, "low": chosen.low,
             "high": chosen.high, "shared_optimism": found.shared, "spearman": rho.rho,
             "spearman_low": rho.low, "spearman_high": rho.high, "spearman_p": rho.p,
             "repeat_spearman": found.repeat.rho, "settings": len(found.numbers)}
        )  # fmt: skip
        settings += [
            {"search": where, "number": n, "score": score, "fresh_score_of_proxies": proxies,
             "fresh_score_of_others": others}
            for n, (score, proxies, others) in zip(found.numbers, found.means, strict=True)
        ]  # fmt: skip
    report.table_file("selection", selection)
    report.table_file("confirm", settings)


def _listing(report: Builder, best: Mapping[str, Trial]) -> Markup:
    rows: list[Row] = []
    for t in report.trials:
        networks = ", ".join(f"{n} {v:.3f}" for n, v in t.per_network.items())
        score = number(t.score, class_="best" if best.get(t.where) is t else "")
        score = replace(score, small=networks if len(t.per_network) > 1 else "")
        time = Cell(words.duration(t.seconds), t.seconds)
        rows.append([t.where, str(t.number), words.setting_text(t.setting), score, t.status, time])
    header = ["search", "trial", "setting", "score", "status", "time"]
    return report.table("trials-listing", header, rows, words=(2,))


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
