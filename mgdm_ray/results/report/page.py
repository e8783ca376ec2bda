"""HTML by small functions: what goes in is escaped, what comes out is ``Html``.

The page is one file: style inside, images as data URIs, no script, nothing from elsewhere.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Iterable, Sequence

WIDE = 7  # columns; a table with more is set smaller, so that no arm falls off the page


class Html(str):
    """Text that is markup already. Plain ``str`` is always escaped before it gets into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Html], between: str = "") -> Html:
    return Html(between.join(parts))


def tag(name: str, *content: Html | None, **attributes: str) -> Html:
    """``tag("p", text("a < b"), class_="note")``; None among the content is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value
    )
    return Html(f"<{name}{shown}>{''.join(c for c in content if c is not None)}</{name}>")


def paragraph(words: str, class_: str = "") -> Html:
    return tag("p", text(words), class_=class_)


def cell(value: str, class_: str = "", style: str = "", small: str = "") -> Html:
    """A table cell with an optional second, fainter line."""
    second = tag("small", text(small)) if small else None
    return tag("td", text(value), second, class_=class_, style=style)


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str | Html]],
    caption: str = "",
    words: Collection[int] = (),
    id_: str = "",
    class_: str = "",
) -> Html:
    """Plain strings become escaped cells, the first one of a row its head; ``Html`` stays.
    Sections call ``Draft.table`` instead, which writes the table's files too.

    Columns hold numbers, aligned to the right, but for those whose index is in ``words``.
    """
    heads = [
        tag("th", text(name), scope="col", class_="words" if i in words else "")
        for i, name in enumerate(header)
    ]
    head = tag("tr", *heads)
    body = []
    for first, *others in rows:
        cells = [other if isinstance(other, Html) else cell(other) for other in others]
        opener = first if isinstance(first, Html) else tag("th", text(first), scope="row")
        body.append(tag("tr", opener, *cells))
    title = tag("caption", text(caption)) if caption else None
    width = f"{class_} {'wide' if len(header) > WIDE else ''}".strip()
    inner = tag("table", title, tag("thead", head), tag("tbody", join(body)), id_=id_, class_=width)
    return tag("div", inner, class_="scroll")


def image(data: bytes, alt: str, caption: Html | None = None, class_: str = "") -> Html:
    """A PNG or JPEG inside the page."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
    picture = Html(f'<img src="{source}" alt="{html.escape(alt, quote=True)}">')
    return tag("figure", picture, tag("figcaption", caption) if caption else None, class_=class_)


def section(anchor: str, title: str, *content: Html | None) -> Html:
    return tag("section", tag("h2", text(title)), *content, id=anchor)


def fold(title: str, *content: Html | None) -> Html:
    """Closed on the screen, open on paper."""
    return tag("details", tag("summary", text(title)), *content)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """A definition list; empty values are left out."""
    pairs = [(tag("dt", text(name)), tag("dd", text(value))) for name, value in rows if value]
    return tag("dl", *(part for pair in pairs for part in pair))


def document(title: str, body: Html, contents: Sequence[tuple[str, str]]) -> str:
    """The whole page; ``contents`` are (anchor, title) of its sections."""
    links = join(tag("a", text(name), href=f"#{anchor}") for anchor, name in contents)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<nav>{links}</nav>\n<main>{body}</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2530; --soft: #5b6470; --line: #dfe3e8;
  --wash: #f5f6f8; --accent: #b02a42; --up: 31 138 91; --down: 201 104 29; --warn: #fdf3dc; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ee; --soft: #9aa4b1;
  --line: #303842; --wash: #1c2229; --accent: #f08a9c; --up: 64 190 132; --down: 235 148 72;
  --warn: #3a3018; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
a { color: var(--accent); }
nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.3rem; overflow-x: auto;
  justify-content: safe center; padding: .55rem 1.5rem; background: var(--paper);
  border-bottom: 1px solid var(--line); font-size: .86rem; white-space: nowrap; }
nav a { color: var(--soft); text-decoration: none; } nav a:hover { color: var(--accent); }
main { max-width: 1120px; margin: 0 auto; padding: 1.1rem 1.5rem 5rem; }
h1 { font: 600 1.75rem/1.2 Georgia, "Times New Roman", serif; margin: 0; }
h1 span { margin-left: .9rem; color: var(--soft); font: 500 .78rem system-ui, sans-serif;
  letter-spacing: .08em; text-transform: uppercase; }
h2 { font: 600 1.45rem/1.3 Georgia, "Times New Roman", serif; margin: 3.4rem 0 .6rem;
  padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .4rem; } h4 { font-size: .92rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 76ch; } p { margin: .5rem 0; }
.question { font: italic 1.05rem/1.45 Georgia, "Times New Roman", serif; color: var(--soft);
  margin: .15rem 0; max-width: none; }
.note, figcaption, caption { color: var(--soft); font-size: .87rem; }
.answer { margin: .7rem 0; padding: .8rem 1.3rem .7rem; background: var(--wash);
  border-left: 4px solid var(--soft); border-radius: 0 8px 8px 0; }
.answer.better { border-color: rgb(var(--up)); } .answer.worse { border-color: rgb(var(--down)); }
.answer .lead { font: 600 1.22rem/1.38 Georgia, "Times New Roman", serif; margin: .3rem 0 .55rem;
  max-width: none; }
.answer dl { margin: .2rem 0 0; gap: .16rem 1.1rem; font-size: .88rem; line-height: 1.42; }
.warning { background: var(--warn); border-radius: 6px; padding: .3rem .7rem; font-size: .88rem;
  max-width: none; }
.badge { display: inline-block; padding: .08rem .6rem; border-radius: 1rem; font-size: .8rem;
  font-weight: 600; background: var(--line); white-space: nowrap; }
.badge.better, .badge.done { background: rgb(var(--up) / .2); }
.badge.worse, .badge.failed { background: rgb(var(--down) / .24); }
.size { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; margin: .6rem 0; max-width: none;
  color: var(--soft); font-size: .86rem; }
.size b { color: var(--ink); font-size: 1rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .7rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 60%; }
caption { text-align: left; padding: 0 0 .45rem; }
th, td { padding: .36rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
th:first-child, .words { text-align: left; } td.words { max-width: 34rem; }
table.wide { font-size: .84rem; } .wide th, .wide td { padding: .34rem .45rem; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line);
  vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; } td.best { font-weight: 700; }
td:not(.words) { white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .8em; font-weight: 400; }
td[style] small { color: inherit; }
.compact { min-width: 100%; } .compact th, .compact td { padding: .2rem .7rem; }
.compact td small { display: inline-block; min-width: 4.4em; }
.compact caption { padding-bottom: .15rem; }
.totalled tbody tr:last-child > * { border-top: 2px solid var(--line); }
figure { margin: 1.1rem 0 1.4rem; } figure img { display: block; max-width: 100%; height: auto; }
figure.plot img { width: 100%; background: #fff; border-radius: 8px; }
figure.plot { margin-top: .8rem; } figcaption { margin-top: .4rem; max-width: 84ch; }
.grids { display: grid; gap: 1.1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
.grids figure { margin: 0; } .grids img { width: 100%; image-rendering: pixelated;
  border-radius: 4px; } .grids b { color: var(--ink); }
.smooth img { image-rendering: auto; background: #fff; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .92rem; }
summary:hover { color: var(--accent); }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem; line-height: 1.5; }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .62em; border-radius: 2px; background: var(--accent);
  opacity: .65; min-width: 2px; }
@media (max-width: 640px) { main { padding: .8rem .9rem 3rem; } h1 span { display: block;
  margin: .2rem 0 0; } .answer { padding: .7rem .9rem; }
  dl, .answer dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .45rem; }
  th, td { padding: .3rem .5rem; } }
@page { size: A4; margin: 14mm 12mm; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444;
    --line: #bbb; --wash: #f4f4f4; --accent: #8a1f33; --up: 31 138 91; --down: 201 104 29;
    --warn: #fdf3dc; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; } body { font-size: 9.5pt; } main { max-width: none; padding: 0; }
  a { color: inherit; text-decoration: none; }
  h2, h3, h4, caption, summary { break-after: avoid; } h2 { margin-top: 1.6rem; }
  figure, tr, .answer { break-inside: avoid; } thead { display: table-header-group; }
  details::details-content { content-visibility: visible; display: block; }
  .scroll { overflow: visible; } table { font-size: 8pt; min-width: 0; width: 100%; }
  table.wide, .compact { font-size: 7.2pt; } th, td, .wide th, .wide td { padding: .2rem .3rem; }
  tbody th, td:not(.words) { white-space: normal; }
  figure.plot img { max-height: 235mm; object-fit: contain; object-position: left; }
  .grids { grid-template-columns: repeat(2, 1fr); } pre { white-space: pre-wrap; } }
"""
