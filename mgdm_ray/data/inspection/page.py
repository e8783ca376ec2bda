"""The page of a check: one file without scripts, with the images inside."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mgdm_ray.config import InputError
from mgdm_ray.data.inspection.duplicates import Pair
from mgdm_ray.data.inspection.findings import Finding
from mgdm_ray.data.inspection.summary import HEADER, class_rows, facts
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.sources.listing import shown
from mgdm_ray.storage.files import replacing

PER_CLASS, MOST_CLASSES, PAIRS, ODD = 24, 60, 24, 8
WARNING = (
    "This page holds images and names of files of your data, of patients perhaps. Keep it as you "
    "keep the images themselves; do not pass it on."
)


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write the page so that its owner only can read it. Raises InputError where it cannot be."""
    body = f"<h1>{_text(title)}</h1><p class=keep>{_text(WARNING)}</p>{''.join(parts)}"
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    try:
        with replacing(path) as temporary:
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(document)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}") from None


def section_of(
    found: Survey, findings: Iterable[Finding], twins: list[list[int]], near: list[Pair]
) -> str:
    """Everything about one dataset."""
    verdicts = "".join(
        f"<li class={f.level}><b>{f.level}</b> {_text(f.text)}. <i>{_text(f.do)}</i></li>"
        for f in findings
    )
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts(found))
    return (
        f"<section><h2>{_text(found.source.config.name)}</h2><p>{_text(found.source.path)}</p>"
        f"<h3>Findings</h3><ul class=findings>{verdicts}</ul>"
        f"<h3>What was found</h3><dl>{rows}</dl>{_table(found)}"
        f"{_pairs(found, twins, near)}{_odd(found)}{_classes(found)}</section>"
    )


def refused_section(name: str, finding: Finding) -> str:
    """Where no image could be listed."""
    text = f"<li class=error><b>error</b> {_text(finding.text)}</li>"
    return f"<section><h2>{_text(name)}</h2><ul class=findings>{text}</ul></section>"


def _table(found: Survey) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in HEADER)
    rows = "".join(
        f"<tr><th>{_text(first)}</th>{''.join(f'<td>{_text(n)}</td>' for n in rest)}</tr>"
        for first, *rest in class_rows(found)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _pairs(found: Survey, twins: list[list[int]], near: list[Pair]) -> str:
    equal = [(group[0], other, "identical") for group in twins for other in group[1:]]
    close = [(pair.first, pair.second, f"correlation {pair.value:.4f}") for pair in near]
    every = [*equal, *close]
    if not every:
        return ""
    shown_ = "".join(
        f"<figure class=pair>{_picture(found, a)}{_picture(found, b)}<figcaption>{_text(what)}<br>"
        f"{_caption(found, a)}<br>{_caption(found, b)}</figcaption></figure>"
        for a, b, what in every[:PAIRS]
    )
    more = f"<p>{len(every) - PAIRS} more are not shown.</p>" if len(every) > PAIRS else ""
    return f"<h3>Identical and nearly identical images</h3><div class=grid>{shown_}</div>{more}"


def _odd(found: Survey) -> str:
    """The smallest and the longest images, flat ones, and those that may hold text."""
    known = found.facts
    rows = range(len(known))
    area = sorted(rows, key=lambda row: known[row].width * known[row].height)[:ODD]
    long = sorted(rows, key=lambda row: -_aspect(found, row))[:ODD]
    groups = (
        ("The smallest images", area),
        ("The longest images", [r for r in long if _aspect(found, r) > 1 and r not in area]),
        ("Flat images", [row for row in rows if known[row].constant][:ODD]),
        ("May hold burnt-in text", [row for row in rows if known[row].text][:PER_CLASS]),
    )
    return "".join(
        f"<h3>{title}</h3><div class=grid>{''.join(_figure(found, row) for row in chosen)}</div>"
        for title, chosen in groups
        if chosen
    )


def _aspect(found: Survey, row: int) -> float:
    one = found.facts[row]
    return max(one.width, one.height) / min(one.width, one.height)


def _classes(found: Survey) -> str:
    size = found.images.shape[1]
    parts = [f"<h3>Images of each class, as a study at {size} px sees them</h3>"]
    labels = np.array([item.label for item in found.listing.items], dtype=np.int64)
    for label, name in enumerate(found.listing.classes[:MOST_CLASSES]):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            continue
        chosen = rows[np.unique(np.linspace(0, len(rows), PER_CLASS, endpoint=False).astype(int))]
        pictures = "".join(_picture(found, int(row)) for row in chosen)
        title = f"{label}: {shown(name)[1:-1]} ({len(rows)})"
        parts.append(f"<h4>{_text(title)}</h4><div class=tight>{pictures}</div>")
    more = len(found.listing.classes) - MOST_CLASSES
    return "".join(parts) + (f"<p>{more} more classes are not shown.</p>" if more > 0 else "")


def _figure(found: Survey, row: int) -> str:
    one = found.facts[row]
    size = f"{one.width} x {one.height}"
    caption = f"<figcaption>{size}<br>{_caption(found, row)}</figcaption>"
    return f"<figure>{_picture(found, row)}{caption}</figure>"


def _caption(found: Survey, row: int) -> str:
    item = found.listing.items[row]
    number = "" if item.slice is None else f" slice {item.slice}"
    label = shown(found.listing.classes[item.label])[1:-1]
    return _text(f"{shown(item.path)[1:-1]}{number} ({item.split}, {label})")


def _picture(found: Survey, row: int) -> str:
    data = io.BytesIO()
    Image.fromarray(np.asarray(found.images[row])).save(data, "PNG")
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    name = _caption(found, row)
    return f'<img src="{source}" alt="{name}" title="{name}">'


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6470; --line: #dfe3e8; --paper: #fff;
  --error: #fbe3e0; --warning: #fdf3dc; --ok: #e2f3ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa4b1; --line: #303842;
  --paper: #14181d; --error: #4a2320; --warning: #3a3018; --ok: #173325; } }
* { box-sizing: border-box; }
body { margin: 0; overflow-wrap: anywhere; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 1.2rem 1.5rem 4rem; }
h1, h2 { font-family: Georgia, "Times New Roman", serif; font-weight: 600; margin: .2rem 0; }
h2 { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: .8rem; }
h3 { margin: 1.8rem 0 .5rem; } h4 { margin: 1rem 0 .3rem; }
p { margin: .4rem 0; }
.keep { background: var(--error); padding: .5rem .8rem; border-radius: 6px; font-weight: 600; }
.findings { list-style: none; padding: 0; }
.findings li { margin: .35rem 0; padding: .4rem .8rem; border-radius: 6px; }
.error { background: var(--error); } .warning { background: var(--warning); }
.ok { background: var(--ok); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; overflow-wrap: anywhere; }
.tight, .grid { display: flex; flex-wrap: wrap; gap: 4px; } .grid { gap: 1rem; }
figure { margin: 0; width: 11rem; } figure.pair { width: 16rem; }
.pair img { margin-right: 4px; }
img { width: 80px; height: 80px; image-rendering: pixelated; background: #000; }
figure img { width: 112px; height: 112px; }
figcaption { color: var(--soft); font-size: .8rem; line-height: 1.35; }
@media print { main { max-width: none; padding: 0; } h3, h4 { break-after: avoid; }
  figure, li, tr { break-inside: avoid; } * { print-color-adjust: exact; } }
"""
