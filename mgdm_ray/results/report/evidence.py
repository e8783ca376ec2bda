"""The report's second half: models, images, failures, costs and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mgdm_ray.evaluation.stats import summarise
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.synthetic import entropy_grids
from mgdm_ray.results.report.table import Cell
from mgdm_ray.results.report.tables import duration, setting_text
from mgdm_ray.results.report.thumbnails import light
from mgdm_ray.storage.records import Record

STRENGTHS_TEXT = "from left to right: stage 1, and decoded under 0, 1/4, 1/2, 1, 2, 4 times gamma"
NAMES_SHOWN = 12
NO_PICTURES = "Not shown, as the study asks (pictures: false). They are in the storage's artefacts."


def models(draft: Draft) -> Html | None:
    """Noisy classifier over t, and the training curves."""
    parts = [_guide_plot(draft), *_curve_plots(draft)]
    if not any(parts):
        return None
    return page.section("models", "Guide and training", *parts)


def _guide_plot(draft: Draft) -> Html | None:
    curves: dict[str, list[tuple[float, float]]] = {}
    errors: dict[str, list[tuple[float, float]]] = {}
    at_chance = []
    for record in draft.records:
        table = (
            draft.json_of(record, "accuracy_over_t.json") if record.kind == "fit_guide" else None
        )
        if table and table["t"]:
            pairs = zip(table["t"], table["balanced_accuracy"], strict=True)
            name = record.dataset or "?"
            curves[name] = sorted((float(t), float(v)) for t, v in pairs)
            if table.get("ece"):
                pairs = zip(table["t"], table["ece"], strict=True)
                errors[name] = sorted((float(t), float(v)) for t, v in pairs)
            lost = [t for t, v in curves[name] if v <= table.get("chance_below", 0.0)]
            if lost:
                at_chance.append(f"{name} at t = {', '.join(f'{t:g}' for t in lost)}")
    if not curves:
        return None
    chance = {
        name: 1 / len(info["classes"]) for name, info in draft.info.items() if info.get("classes")
    }
    return draft.plot(
        "guide",
        figures.guide_over_t(curves, chance, errors),
        "Balanced accuracy of the noisy classifier over the noise level",
        "Can guidance work at all? Balanced accuracy of the noisy classifier on validation images, "
        "noised to t. Where it is at chance, its gradient holds no information about the class. "
        + (f"No better than guessing: {'; '.join(at_chance)}." if at_chance else ""),
    )


def _curve_plots(draft: Draft) -> list[Html | None]:
    diffusion: dict[str, dict[str, figures.Curve]] = {}
    cells: dict[str, dict[str, list[figures.Curve]]] = {}
    names = {"fit_denoiser": "denoiser", "fit_guide": "guide (noisy classifier)"}
    for record in draft.records:
        if record.kind not in names and not record.is_cell:
            continue
        history = draft.json_of(record, "history.json")
        if not history:
            continue
        curve = [(float(row["step"]), float(row["loss"])) for row in history]
        dataset = record.dataset or "?"
        if record.is_cell:
            cells.setdefault(dataset, {}).setdefault(record.arm or "?", []).append(curve)
        else:
            diffusion.setdefault(names[record.kind], {})[dataset] = curve
    means = {
        dataset: {arm: _mean_curve(arms[arm]) for arm in tables.in_order(arms)}
        for dataset, arms in cells.items()
    }
    return [
        draft.plot(
            "training",
            figures.loss_curves(diffusion, arms=False),
            "Training loss of the diffusion models",
            "Training loss of denoiser and guide; faint: every step, strong: running mean.",
        )
        if diffusion
        else None,
        draft.plot(
            "downstream",
            figures.loss_curves(means, arms=True),
            "Training loss of the evaluated networks",
            "Training loss of the evaluated networks: mean over networks and seeds per arm. A low "
            "loss says how well the training set was learnt, not how well the network generalises.",
        )
        if means
        else None,
    ]


def _mean_curve(curves: Sequence[figures.Curve]) -> list[tuple[float, float]]:
    losses: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            losses.setdefault(step, []).append(loss)
    return [(step, summarise(values).mean) for step, values in sorted(losses.items())]


def images(draft: Draft) -> Html | None:
    """Real images beside those of each arm, dataset by dataset."""
    parts = []
    for dataset in draft.datasets:
        if dataset in draft.context.without_pictures:
            parts += [page.tag("h3", text(dataset)), page.paragraph(NO_PICTURES, "note")]
            continue
        found = _grids(draft, dataset)
        if not found:
            continue
        shown = []
        for name, setting, path in found:
            data = path.read_bytes()
            draft.save(f"figures/grid-{dataset}-{name}.png", data)
            label = page.join([page.tag("b", text(name)), text(f" · {setting}" if setting else "")])
            shown.append(page.image(light(data), f"{dataset}, {name}", label))
        classes = draft.info.get(dataset, {}).get("classes") or ()
        rows = f"Rows, top to bottom: {', '.join(map(str, classes))}." if classes else ""
        parts += [page.tag("h3", text(dataset)), page.paragraph(rows, "note") if rows else Html("")]
        parts.append(page.tag("div", page.join(shown), class_="grids"))
        uncertain = entropy_grids(draft, dataset)
        if uncertain:
            parts += [page.tag("h4", text("With the judge's entropy of each image")), uncertain]
    if not parts:
        return None
    intro = page.paragraph(
        "One row per class. Grids with the same stage-1 scales (guidance, classifier) hold the "
        "same image in the same place: roundtrip, perturb and disturb start from the images that "
        "generate drew with these scales."
    )
    return page.section("images", "Images", intro, *parts)


def _grids(draft: Draft, dataset: str) -> list[tuple[str, str, Path]]:
    """(arm, setting, file) for every arm of the study that has images of its own, and real.

    Of several grids of an arm, that of the images which the first network was trained on.
    """
    used: dict[str, Record] = {}
    for record in sorted(draft.records, key=lambda r: (r.network or "", r.seed or 0)):
        if record.is_cell and record.dataset == dataset and record.status == "done" and record.arm:
            used.setdefault(record.arm, record)
    found: dict[str, tuple[str, Path]] = {}
    for record in draft.records:
        if record.dataset != dataset or record.kind not in ("fit_denoiser", "generate", "decode"):
            continue
        arm = "real" if record.kind == "fit_denoiser" else record.arm or record.kind
        name = "real.png" if record.kind == "fit_denoiser" else "grid.png"
        folder = draft.context.artefact(record)
        if folder is None or not (folder / name).is_file():
            continue
        if arm != "real" and arm not in draft.arms:
            continue  # stage 1 of a study without the arm generate
        cell = used.get(arm)
        same_network = cell is None or record.network in (None, cell.network)
        fits = cell is None or (same_network and record.setting == cell.setting)
        if arm in found and not fits:
            continue
        found_for = f", found for {record.network}" if record.network else ""
        found[arm] = (setting_text(record.setting) + found_for, folder / name)
    grids = [(arm, *found[arm]) for arm in tables.in_order(found)]
    strengths = found["disturb"][1].with_name("strengths.png") if "disturb" in found else None
    if strengths is not None and strengths.is_file():
        grids.append(("strengths", STRENGTHS_TEXT, strengths))
    return grids


def failures(draft: Draft) -> Html:
    if not draft.problems:
        return page.section("failures", "What failed", page.paragraph("Nothing failed."))
    rows: list[list[str | Cell]] = []
    for status, reason, names in draft.problems:
        shown = "; ".join(names[:NAMES_SHOWN])
        if len(names) > NAMES_SHOWN:
            shown += f"; and {len(names) - NAMES_SHOWN} more"
        rows.append([status, str(len(names)), reason, Cell(shown, "; ".join(names))])
    return page.section(
        "failures",
        "What failed and why",
        page.paragraph(
            "Failures are never cached: the same command with --retry-failed runs them again. "
            "Jobs that were held up stand under the reason at the root."
        ),
        draft.table("failures", ["status", "jobs", "reason", "which"], rows, words=(2, 3)),
    )


def costs(draft: Draft) -> Html:
    table = tables.costs(draft.records)
    total = sum(row[3] for row in table if row[0] != "trial") or 1.0  # a search holds its trials
    rows: list[list[str | Cell]] = []
    for kind, done, other, seconds, longest in table:
        bar = page.tag("span", class_="bar", style=f"width: {9 * seconds / total:.2f}em")
        share = Cell(f"{seconds / total:.0%}", seconds / total, html=bar, style="min-width: 10em")
        times = [Cell(duration(seconds), seconds), share, Cell(duration(longest), longest)]
        rows.append([kind, str(done), str(other), *times])
    return page.section(
        "costs",
        "What it cost",
        page.paragraph(
            f"Seconds of work as they were spent when each artefact was made, {duration(total)} "
            "together; what the store already had cost this run nothing. Trials count within their "
            "search.",
            "note",
        ),
        draft.table(
            "costs", ["kind", "done", "not done", "time", "share", "longest"], rows, words=(4,)
        ),
    )


def provenance(draft: Draft) -> Html:
    context = draft.context
    commits = Counter(r.git_commit or "unknown" for r in draft.records if r.kind != "trial")
    packages = Counter(_versions(r.versions) for r in draft.records if r.kind != "trial")
    return page.section(
        "provenance",
        "Provenance",
        page.facts(
            [
                ("command", context.command),
                ("last run", f"{context.started}, {duration(context.seconds)}"),
                ("seeds", ", ".join(map(str, draft.seeds))),
                ("storage", context.storage),
                ("computed by commit", _tally(commits)),
                ("computed with", _tally(packages)),
                ("report by commit", context.git_commit or "unknown"),
                ("report with", _versions(context.versions)),
                ("MLflow", context.mlflow_command),
                (
                    "files",
                    "every table as tables/NAME.csv (full precision) and tables/NAME.tex, every "
                    "figure as figures/NAME.png beside this page; records.jsonl",
                ),
            ]
        ),
        _dataset_table(draft),
        _findings(context.findings),
        page.fold("Resolved configuration", page.tag("pre", text(context.config_yaml))),
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _tally(names: Counter[str]) -> str:
    """All of them, with the number of jobs where there are several."""
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{name} ({count} jobs)" for name, count in names.most_common())


def _findings(findings: Mapping[str, Sequence[str]]) -> Html | None:
    """Leaks between splits and the like: reported, never repaired."""
    items = [
        page.tag("li", text(f"{dataset}: {message}."))
        for dataset, messages in findings.items()
        for message in messages
    ]
    if not items:
        return None
    title = page.tag("h3", text("What is wrong with the data"))
    return page.join([title, page.tag("ul", page.join(items), class_="note")])


def _dataset_table(draft: Draft) -> Html | None:
    rows: list[list[str | Cell]] = [
        [
            str(info["name"]),
            str(info.get("task", "")),
            ", ".join(map(str, info.get("classes") or ())),
            str(info.get("licence", "")),
            str(info.get("citation", "")),
        ]
        for info in draft.info.values()
    ]
    header = ["dataset", "task", "classes", "licence", "source"]
    return draft.table("datasets", header, rows, words=range(1, 5)) if rows else None
