"""Puts the sections together and writes the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mgdm_ray.results.report import answer, evidence, page, results, searches, statistics, synthetic
from mgdm_ray.results.report.draft import Draft, ReportContext
from mgdm_ray.results.report.headline import HEADLINE_FILE, headline
from mgdm_ray.storage.records import Record

SECTIONS = (
    ("question", "Question", results.asked),
    ("results", "Results", results.results),
    ("contrasts", "Contrasts", results.contrasts),
    ("statistics", "Statistics", statistics.statistics),
    ("search", "Search", searches.search),
    ("images", "Images", evidence.images),
    ("synthetic", "Judged", synthetic.synthetic),
    ("copies", "Copies", synthetic.copies),
    ("models", "Training", evidence.models),
    ("failures", "Failures", evidence.failures),
    ("costs", "Costs", evidence.costs),
    ("provenance", "Provenance", evidence.provenance),
)


def write_report(folder: Path, records: Sequence[Record], context: ReportContext) -> Path:
    """Write ``report.html``, ``headline.json``, ``figures/*.png``, ``tables/*`` in ``folder``.

    Works at any time of a study: sections without data are left out or say so. Each file is
    replaced in one step, the page last. Returns the page's path.
    """
    draft = Draft(folder, records, context)
    head = answer.head(draft)
    built = [(anchor, name, section(draft)) for anchor, name, section in SECTIONS]
    shown = [(anchor, name, html) for anchor, name, html in built if html is not None]
    body = page.join([head, *(html for _, _, html in shown)])
    contents = [(anchor, name) for anchor, name, _ in shown]
    title = f"{context.study_name}: mgdm-ray report"
    numbers = headline(draft.primary or draft.secondary)
    draft.save(HEADLINE_FILE, json.dumps(numbers, indent=1).encode())
    path = draft.save("report.html", page.document(title, body, contents).encode())
    draft.clean()
    return path
