"""Sections: training of the models, images, failures, costs and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from mgdm_ray.evaluation.stats.paired import summarise
from mgdm_ray.results.openings import table_rows
from mgdm_ray.results.report import cells
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import models as figures
from mgdm_ray.results.report.figures.base import Curve
from mgdm_ray.results.report.page import render
from mgdm_ray.results.report.synthetic import pictures_of
from mgdm_ray.results.report.table import Cell, Row
from mgdm_ray.results.report.words import DASH, duration, first_of, percent, setting_text
from mgdm_ray.storage.records import Record

STRENGTHS_TEXT = "from left to right: stage 1, then decoded at 0, 1/4, 1/2, 1, 2, 4 times gamma"
NAMES_SHOWN = 12
MODELS = {"fit_denoiser": "denoiser", "fit_guide": "guide (noisy classifier)"}


def models(report: Builder) -> Markup | None:
    """Noisy classifier over t, and the training curves; models of the first draw."""
    curves: dict[str, Curve] = {}
    errors: dict[str, Curve] = {}
    at_chance = []
    for record in report.of_first_draw:
        guide = record.kind == "fit_guide"
        table = report.json(record, "accuracy_over_t.json") if guide else None
        if not table or not table["t"]:
            continue
        name = record.dataset or "?"
        curves[name] = sorted(zip(table["t"], table["balanced_accuracy"], strict=True))
        if table.get("ece"):
            errors[name] = sorted(zip(table["t"], table["ece"], strict=True))
        lost = [f"{t:g}" for t, v in curves[name] if v <= table.get("chance_below", 0.0)]
        if lost:
            at_chance.append(f"{name} at t = {', '.join(lost)}")
    found = {
        "guide": figures.guide_over_t(curves, report.chance, errors) if curves else None,
        **{name: figures.loss_curves(losses) for name, losses in _losses(report).items() if losses},
    }
    plots = {name: report.plot(name, figure) for name, figure in found.items() if figure}
    return render("models", plots=plots, at_chance="; ".join(at_chance)) if plots else None


def _losses(report: Builder) -> dict[str, dict[str, dict[str, Curve]]]:
    """By figure, panel and line: of the diffusion models, and means of the evaluated networks."""
    diffusion: dict[str, dict[str, Curve]] = {}
    networks: dict[str, dict[str, list[Curve]]] = {}
    for record in report.of_first_draw:
        known = record.kind in MODELS or record.is_cell
        history = report.json(record, "history.json") if known else None
        if not history:
            continue
        curve = [(float(row["step"]), float(row["loss"])) for row in history]
        dataset = record.dataset or "?"
        if record.is_cell:
            networks.setdefault(dataset, {}).setdefault(record.arm or "?", []).append(curve)
        else:
            diffusion.setdefault(MODELS[record.kind], {})[dataset] = curve
    means = {
        dataset: {arm: _mean_curve(arms[arm]) for arm in cells.in_order(arms)}
        for dataset, arms in networks.items()
    }
    return {"training": diffusion, "downstream": means}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    losses: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            losses.setdefault(step, []).append(loss)
    return [(step, summarise(values).mean) for step, values in sorted(losses.items())]


def images(report: Builder) -> Markup | None:
    """Real images beside those of each arm, dataset by dataset."""
    shown: dict[str, dict[str, list[dict[str, str]]] | None] = {}
    for dataset in report.datasets:
        if dataset in report.context.without_pictures:
            shown[dataset] = None
            continue
        grids = []
        for name, setting, path in _grids(report, dataset):
            words = {"alt": f"{dataset}, {name}", "name": name, "caption": setting}
            grids.append(report.picture(f"grid-{dataset}-{name}", path.read_bytes(), **words))
        if grids:
            entropy = pictures_of(report, dataset, "entropy")
            shown[dataset] = {"grids": grids, "entropy": entropy}
    return render("images", report=report, shown=shown) if shown else None


def _grids(report: Builder, dataset: str) -> list[tuple[str, str, Path]]:
    """(arm, setting, file) for every arm of the study that has images of its own, and real.

    Of several grids of an arm, that of the images of the first draw which the first network was
    trained on.
    """
    used: dict[str, Record] = {}
    for record in sorted(report.records, key=lambda r: (r.network or "", r.seed or 0)):
        if record.is_cell and record.dataset == dataset and record.status == "done" and record.arm:
            used.setdefault(record.arm, record)
    found: dict[str, tuple[str, Path]] = {}
    for record in report.of_first_draw:
        if record.dataset != dataset or record.kind not in ("fit_denoiser", "generate", "decode"):
            continue
        real = record.kind == "fit_denoiser"
        arm = "real" if real else record.arm or record.kind
        path = report.file(record, "real.png" if real else "grid.png")
        if path is None or not (real or arm in report.arms):
            continue  # also stage 1 of a study without the arm generate
        cell = used.get(arm)
        same_network = cell is None or record.network in (None, cell.network)
        fits = cell is None or (same_network and record.setting == cell.setting)
        if arm not in found or fits:
            found_for = f", found for {record.network}" if record.network else ""
            found[arm] = (setting_text(record.setting) + found_for, path)
    grids = [(arm, *found[arm]) for arm in cells.in_order(found)]
    strengths = found["disturb"][1].with_name("strengths.png") if "disturb" in found else None
    if strengths is not None and strengths.is_file():
        grids.append(("strengths", STRENGTHS_TEXT, strengths))
    return grids


def failures(report: Builder) -> Markup:
    rows: list[Row] = [
        [status, str(len(names)), reason, Cell(first_of(names, NAMES_SHOWN), "; ".join(names))]
        for status, reason, names in report.problems
    ]
    header = ["status", "jobs", "reason", "which"]
    table = report.table("failures", header, rows, words=(2, 3))
    return render("failures", table=table)


def costs(report: Builder) -> Markup:
    """Time per kind of job, the longest first; trials after the search, which includes them."""
    groups = {kind: list(group) for kind, group in groupby(report.records, lambda r: r.kind)}
    spent = {kind: sum(record.seconds for record in group) for kind, group in groups.items()}
    total = sum(s for kind, s in spent.items() if kind != "trial") or 1.0
    place = {**spent, "trial": spent.get("search", 0)}
    rows: list[Row] = []
    for kind in sorted(groups, key=lambda kind: (-place[kind], kind == "trial")):
        share, longest = spent[kind] / total, max(record.seconds for record in groups[kind])
        bar = Markup('<span class="bar" style="width: {:.2f}em"></span> {}')
        html = bar.format(9 * share, percent(share))
        head, cell = Cell(kind), Cell(percent(share), share, html=html, style="min-width: 13em")
        if kind == "trial":
            head, cell = Cell("of which trials", kind), Cell(DASH)
        done = sum(record.status == "done" for record in groups[kind])
        counts = str(done), str(len(groups[kind]) - done)
        times = Cell(duration(spent[kind]), spent[kind]), cell, Cell(duration(longest), longest)
        rows.append([head, *counts, *times])
    header = ["kind", "done", "not done", "time", "share", "longest"]
    shown = report.table("costs", header, rows, words=(4,))
    return render("costs", total=total, table=shown)


def provenance(report: Builder) -> Markup:
    """Commands, versions and datasets."""
    made = [record for record in report.records if record.kind != "trial"]
    rows = [
        [name, str(info.get("task", "")), ", ".join(report.classes(name)),
         str(info.get("licence", "")), str(info.get("citation", ""))]
        for name, info in report.info.items()
    ]  # fmt: skip
    header = ["dataset", "task", "classes", "licence", "source"]
    opened = ["study", "plan", "first", "last", "jobs", "reports"]
    return render(
        "provenance",
        report=report,
        openings=report.table(
            "openings", opened, table_rows(report.context.openings), words=range(1, 5)
        ),
        commits=Counter(r.git_commit or "unknown" for r in made),
        packages=Counter(_versions(r.versions) or "unknown" for r in made),
        versions=_versions(report.context.versions),
        datasets=report.table("datasets", header, rows, words=range(1, 5)),
        context=report.context,
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
