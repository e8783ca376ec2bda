"""The report's section on the searches: what they found, and how far that can be believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mgdm_ray.evaluation.selection_bias import FEWEST, Agreement, Confirmed
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, interval, number
from mgdm_ray.results.report.tables import DASH, GAMMA, duration, setting_text
from mgdm_ray.storage.records import Record

PARAMETERS = {
    "measurement": "measurement",
    "stage_one": "stage-1 scales",
    "uncertainty_scale": f"strength {GAMMA} in its range",
}
OLD = "the search is older than this figure"


def search(draft: Draft) -> Html | None:
    searches = [r for r in draft.records if r.kind == "search"]
    if not draft.trials and not searches:
        return None
    best = tables.best_trials(draft.trials)
    confirmed = _confirmed(draft)
    _trial_file(draft)
    _confirm_files(draft, confirmed)
    listing = page.fold(
        f"All {len(draft.trials)} trials",
        draft.table(
            "trials-listing",
            ["search", "trial", "setting", "score", "status", "time"],
            [_trial_row(t, best.get(t.where) is t) for t in draft.trials],
            words=(2,),
        ),
    )
    return page.section(
        "search",
        "Search for the guidance setting",
        page.paragraph(
            "Each trial is a guidance setting; its score is the mean balanced accuracy of the "
            "proxy networks on validation data. The best of several scores is optimistic by "
            "construction: only the test results above say what the setting is worth."
        ),
        _best_table(draft, best, confirmed) if best else None,
        _words(confirmed, best),
        *_trial_plots(draft, best),
        _importance(draft, searches),
        _confirm_plot(draft, confirmed),
        listing if draft.trials else page.paragraph("No trial was recorded: see what failed."),
    )


def _confirmed(draft: Draft) -> dict[str, Confirmed]:
    """By search, of those whose settings were scored again."""
    found = {}
    for record in draft.records:
        if record.kind == "confirm" and record.status == "done":
            content = draft.json_of(record, "confirm.json")
            if content is not None:
                found[tables.where_of(record)] = Confirmed.of(content)
    return found


def _best_table(
    draft: Draft, best: Mapping[str, Trial], confirmed: Mapping[str, Confirmed]
) -> Html:
    header = ["search", "best setting", "score", "trials"]
    if confirmed:
        header[3:3] = ["fresh seeds", "too high by", "95 % interval"]
    rows: list[list[str | Cell]] = []
    for where, trial in best.items():
        again = confirmed.get(where)
        fresh = [Cell(DASH), Cell(DASH), Cell(DASH)]
        if again:
            chosen = again.chosen
            fresh = [
                number(chosen.fresh),
                number(chosen.value, sign=True),
                interval(chosen.low, chosen.high),
            ]
        rows.append(
            [
                where,
                setting_text(trial.setting),
                number(trial.score),
                *(fresh if confirmed else []),
                str(sum(other.where == where for other in draft.trials)),
            ]
        )
    return draft.table("searches", header, rows, caption="The chosen settings", words=(1,))


def _words(confirmed: Mapping[str, Confirmed], best: Mapping[str, Trial]) -> Html | None:
    """One plain sentence or two per search; what to do where nothing was scored again."""
    if not confirmed:
        how = "search.confirm scores it again with fresh seeds, and shows how much too high it is"
        return page.paragraph(f"The best score was not confirmed: {how}.", "note") if best else None
    items = [
        page.tag("li", page.tag("b", text(where)), text(f": {optimism_words(found)}"))
        for where, found in confirmed.items()
    ]
    return page.join(
        [
            page.tag("ul", page.join(items)),
            page.paragraph(
                "Fresh seeds are those of weights and batches; images and validation data are the "
                "same. What was selected for their chance shows on the test split only.",
                "note",
            ),
        ]
    )


def optimism_words(found: Confirmed) -> str:
    """How much too high the best score was, and what of it is due to choosing."""
    chosen = found.chosen
    amount = f"{abs(chosen.value):.3f} too {'high' if chosen.value >= 0 else 'low'}"
    expected = chosen.value > 0 and found.trials > 1
    maximum = f", as is to be expected of a maximum of {found.trials}" if expected else ""
    if math.isnan(chosen.low):
        interval = "no interval: one fresh seed, or seeds that make no difference"
    else:
        interval = f"95 % interval {_interval(chosen.low, chosen.high)}"
        interval += "" if chosen.is_resolved else ", which holds 0"
    words = f"the search's score was {amount}{maximum} ({interval})."
    if math.isnan(found.shared):
        return words
    return (
        f"{words} Over all {len(found.numbers)} settings that were scored again the search's "
        f"scores were off by {found.shared:+.3f} on average, the luck of seeds that its trials "
        f"share; that leaves {chosen.value - found.shared:+.3f} for choosing."
    )


def transfer_words(found: Confirmed) -> str:
    """Whether the proxy networks rank settings for the others."""
    agreement = found.transfer
    if agreement is None:
        return "the study has no network that is not a proxy: there is nothing to rank for."
    if math.isnan(agreement.rho):
        which = "one setting" if agreement.n < 2 else "a score that is the same for all settings"
        return f"{which} gives no ranking."
    if agreement.n < FEWEST:
        words = (
            f"{_rho(agreement)}; with fewer than {FEWEST} settings no ranking can be told from "
            "chance (search.confirm.settings)."
        )
    elif agreement.is_resolved:
        way = "as" if agreement.rho > 0 else "the other way round than"
        words = f"the proxy networks rank settings {way} the others do: {_rho(agreement)}."
    else:
        words = (
            f"whether the proxy networks rank settings for the others is not resolvable with "
            f"{agreement.n} settings: {_rho(agreement)}."
        )
    if agreement.n >= FEWEST and math.isfinite(found.repeat.rho):
        words += (
            " With fresh seeds the proxy networks agree with themselves by "
            f"{found.repeat.rho:+.2f}: no other network can be expected to do better."
        )
    return words


def _rho(agreement: Agreement) -> str:
    words = f"Spearman {agreement.rho:+.2f} over {agreement.n} settings"
    if math.isnan(agreement.low):
        return words
    interval = _interval(agreement.low, agreement.high, digits=2)
    return f"{words} (95 % interval {interval}, p = {agreement.p:.3f})"


def _interval(low: float, high: float, digits: int = 3) -> str:
    return DASH if math.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"


def _confirm_plot(draft: Draft, confirmed: Mapping[str, Confirmed]) -> Html | None:
    if not confirmed:
        return None
    items = [
        page.tag("li", page.tag("b", text(where)), text(f": {transfer_words(found)}"))
        for where, found in confirmed.items()
    ]
    plot = draft.plot(
        "confirm",
        figures.confirmed({where: found.means for where, found in confirmed.items()}),
        "Settings scored again: fresh scores over the scores of the search",
        "Settings of all ranks of the search, scored again with fresh seeds and as many training "
        "steps as in the search: by the proxy networks (rings: on the dashed line nothing "
        "changed) and by the study's other networks (dots: do they rise with the search's score?). "
        "Circled: the chosen setting.",
    )
    title = page.tag("h3", text("Do the proxy networks rank settings for the others?"))
    return page.join([title, page.tag("ul", page.join(items)), plot])


def _importance(draft: Draft, searches: Sequence[Record]) -> Html | None:
    shares: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    rows: list[list[object]] = []
    for record in searches:
        if record.status != "done":
            continue
        where = tables.where_of(record)
        found = draft.json_of(record, "importance.json") or {"reason": OLD, "importance": {}}
        if found["importance"]:
            shares[where] = {PARAMETERS.get(k, k): v for k, v in found["importance"].items()}
            rows += [[where, k, v, found["trials"]] for k, v in found["importance"].items()]
        else:
            reasons[where] = found["reason"]
    absent = "; ".join(f"{where}: {reason}" for where, reason in reasons.items())
    note = page.paragraph(f"No importance of parameters: {absent}.", "note") if absent else None
    if not shares:
        return note
    draft.table_file("importance", ["search", "parameter", "importance", "trials"], rows)
    plot = draft.plot(
        "importance",
        figures.importance(shares),
        "Importance of the searched parameters",
        "Of the variance of scores that single parameters explain, the share of each (fANOVA over "
        "the finished trials). With few trials, or scores that are mostly noise, it says little.",
    )
    return page.join([plot, note or Html("")])


def _trial_file(draft: Draft) -> None:
    draft.table_file(
        "trials",
        ["search", "number", "status", "score", "seconds", "setting", "per_network"],
        [
            [t.where, t.number, t.status, "" if t.score is None else t.score, t.seconds,
             json.dumps(dict(t.setting)), json.dumps(dict(t.per_network))]
            for t in draft.trials
        ],
    )  # fmt: skip


def _confirm_files(draft: Draft, confirmed: Mapping[str, Confirmed]) -> None:
    if not confirmed:
        return
    rows: list[list[object]] = []
    for where, found in confirmed.items():
        rho = found.transfer
        chosen = found.chosen
        values = [chosen.claimed, chosen.fresh, chosen.value, chosen.low, chosen.high, found.shared]
        values += [rho.rho, rho.low, rho.high, rho.p] if rho else [math.nan] * 4
        values.append(found.repeat.rho)
        shown = ["" if math.isnan(value) else value for value in values]
        rows.append([where, found.numbers[0], *shown, len(found.numbers)])
    draft.table_file(
        "selection",
        ["search", "number", "score", "fresh_score", "optimism", "low", "high", "shared_optimism",
         "spearman", "spearman_low", "spearman_high", "spearman_p", "repeat_spearman", "settings"],
        rows,
    )  # fmt: skip
    draft.table_file(
        "confirm",
        ["search", "number", "score", "fresh_score_of_proxies", "fresh_score_of_others"],
        [
            [where, number, score, fresh, "" if math.isnan(others) else others]
            for where, found in confirmed.items()
            for number, (score, fresh, others) in zip(found.numbers, found.means, strict=True)
        ],
    )


def _trial_row(trial: Trial, best: bool) -> list[str | Cell]:
    networks = ", ".join(f"{n} {v:.3f}" for n, v in trial.per_network.items())
    return [
        trial.where,
        str(trial.number),
        setting_text(trial.setting),
        replace(
            number(trial.score, class_="best" if best else ""),
            small=networks if len(trial.per_network) > 1 else "",
        ),
        trial.status,
        Cell(duration(trial.seconds), trial.seconds),
    ]


def _trial_plots(draft: Draft, best: Mapping[str, Trial]) -> list[Html]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for t in draft.trials:
        if t.score is None or t.setting.get("uncertainty_scale") is None:
            continue
        rows.setdefault(t.where, []).append(
            {
                "measurement": str(t.setting.get("measurement", "?")),
                "uncertainty_scale": float(t.setting["uncertainty_scale"]),
                "guidance_scale": float(t.setting.get("guidance_scale", 1.0)),
                "score": t.score,
                "best": best.get(t.where) is t,
            }
        )
    if not rows:
        return []
    scatter = draft.plot(
        "search",
        figures.search_scatter(rows),
        "Search trials: score over guidance strength",
        f"Validation score of each trial over the strength {GAMMA} of measurement guidance.",
    )
    guided = {
        where: [trial for trial in found if trial["uncertainty_scale"] > 0]
        for where, found in rows.items()
    }
    if not any(guided.values()):
        return [scatter]
    heat = draft.plot(
        "heat-map",
        figures.heat_map({where: found for where, found in guided.items() if found}),
        f"Mean validation score by strength {GAMMA} and search",
        f"The same trials by strength {GAMMA}: mean validation score of the n trials in each bin, "
        "from the mean of all trials of that search (blue: better). Framed: the chosen setting; "
        "hatched: not tried. A sampler tries good settings more often, so n is no design; a bin "
        "of few trials is mostly noise.",
    )
    return [scatter, heat]
