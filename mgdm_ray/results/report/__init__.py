"""Records -> tables, figures and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgdm_ray.results.report import (
    answer,
    evidence,
    page,
    per_image,
    results,
    robustness,
    searches,
    synthetic,
    words,
)
from mgdm_ray.results.report.builder import Builder, ReportContext
from mgdm_ray.storage.records import Record

SECTIONS = (
    ("question", "Question", results.question),
    ("results", "Results", results.results),
    ("contrasts", "Contrasts", results.contrasts),
    ("statistics", "Robustness", robustness.robustness),
    ("search", "Search", searches.search),
    ("images", "Images", evidence.images),
    ("synthetic", "Judge", synthetic.synthetic),
    ("copies", "Copies", synthetic.copies),
    ("models", "Training", evidence.models),
    ("failures", "Failures", evidence.failures),
    ("costs", "Cost", evidence.costs),
    ("provenance", "Provenance", evidence.provenance),
)
"""Anchor, name in the contents, and what makes the section; None leaves it out."""


def write_report(folder: Path, records: Sequence[Record], context: ReportContext) -> Path:
    """Write ``report.html`` and the files beside it in ``folder``: ``headline.json``,
    ``answer.txt``, ``figures/*.png``, ``tables/*`` with the predictions.

    Works at any time of a study. Each file is replaced in one step, the page last. Returns the
    page's path.
    """
    report = Builder(folder, records, context)
    head = answer.head(report)
    built = [(anchor, name, section(report)) for anchor, name, section in SECTIONS]
    answer.save_headline(report)
    per_image.save_predictions(report)
    title = f"{context.study_name}: mgdm-ray report"
    shown = [part for part in built if part[2] is not None]
    html = words.unbroken(page.render("page", title=title, head=head, sections=shown))
    path = report.save("report.html", html.encode())
    report.clean()
    return path
