"""A table of the report, given once and written three ways: HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mgdm_ray.results.report import page
from mgdm_ray.results.report.page import Html
from mgdm_ray.results.report.tables import DASH

LONG = 28  # characters; a column of words that has longer ones gets a width in LaTeX
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\le$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\ge$",
    "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$",
    "\N{GREEK SMALL LETTER RHO}": r"$\rho$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{EN DASH}": "--",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table, for people and for programs."""

    shown: str
    """On the page and in LaTeX."""
    value: object = None
    """In the CSV, in full precision; None: as shown, unless there are ``parts``."""
    parts: Mapping[str, object] = field(default_factory=dict)
    """Further values for the CSV; each becomes a column named after this one: ``disturb sd``."""
    small: str = ""
    """A second, fainter line."""
    class_: str = ""
    """``best`` is bold, ``words`` wraps."""
    style: str = ""
    html: Html | None = None
    """Takes the place of ``shown`` on the page."""

    def plain(self) -> object:
        """Its CSV value; empty where there is none."""
        if self.value is not None:
            return _kept(self.value)
        return "" if self.parts or self.shown == DASH else self.shown


def number(value: float | None, digits: int = 3, sign: bool = False, class_: str = "") -> Cell:
    """A rounded number; a dash for None and nan."""
    if value is None or math.isnan(value):
        return Cell(DASH, "")
    return Cell(f"{value:{'+' if sign else ''}.{digits}f}", value, class_=class_)


def interval(low: float, high: float, digits: int = 3) -> Cell:
    """``+0.010 to +0.020``; a dash where there is none."""
    shown = DASH if math.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return Cell(shown, parts={"low": low, "high": high})


def p_value(value: float) -> Cell:
    """Three digits, ``< 0.001`` below; a dash for nan."""
    if math.isnan(value):
        return Cell(DASH)
    return Cell(f"{value:.3f}" if value >= 0.001 else "< 0.001", value)


@dataclass(frozen=True)
class Sheet:
    """Header and rows; plain strings are cells too. The first cell of a row is its head.

    ``name`` is that of its files and, after ``table-``, its id on the page. Columns hold numbers,
    but for the first and those whose index is in ``words``.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    words: Collection[int] = ()
    class_: str = ""

    def __post_init__(self) -> None:
        for name, count in Counter(self.header).items():
            if count > 1:
                raise ValueError(f"table {self.name}: two columns are called {name!r}")
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table {self.name}: a row of {len(row)} cells under {len(self.header)} heads"
                )

    def html(self) -> Html:
        return page.table(
            self.header,
            [
                [_cell(first).shown, *(_markup(c, i in self.words) for i, c in enumerate(rest, 1))]
                for first, *rest in self.rows
            ],
            caption=self.caption,
            words=self.words,
            id_=f"table-{self.name}",
            class_=self.class_,
        )

    def csv(self) -> str:
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        header: list[str] = []
        columns: list[list[object]] = []
        for i, title in enumerate(self.header):
            cells = [row[i] for row in rows]
            parts = list(dict.fromkeys(name for cell in cells for name in cell.parts))
            if not parts or any(cell.value is not None for cell in cells):
                header.append(title)
                columns.append([cell.plain() for cell in cells])
            for name in parts:
                header.append(f"{title} {name}")
                columns.append([_kept(cell.parts.get(name)) for cell in cells])
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
        return buffer.getvalue()

    def tex(self) -> str:
        """A ``table`` for the package booktabs; rounded as on the page."""
        rows = [[_latex(_cell(cell)) for cell in row] for row in self.rows]
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(self.caption or self.name)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{''.join(self._column(i) for i in range(len(self.header)))}}}",
            r"\toprule",
            _line([escape(title) for title in self.header]),
            r"\midrule",
            *map(_line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _column(self, index: int) -> str:
        if index and index not in self.words:
            return "r"
        longest = max((len(_cell(row[index]).shown) for row in self.rows), default=0)
        return r"p{0.3\linewidth}" if longest > LONG else "l"


def escape(words: str) -> str:
    """Text as LaTeX shows it as it is."""
    return "".join(SPECIAL.get(sign, sign) for sign in words)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(cell: Cell) -> str:
    shown = escape(cell.shown)
    if "best" in cell.class_:
        shown = rf"\textbf{{{shown}}}"
    return shown + (rf" {{\scriptsize {escape(cell.small)}}}" if cell.small else "")


def _cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _markup(cell: str | Cell, words: bool) -> str | Html:
    cell = _cell(cell)
    class_ = f"{cell.class_} words".strip() if words else cell.class_
    if cell.html is not None:
        return page.tag("td", cell.html, class_=class_, style=cell.style)
    if cell == Cell(cell.shown) and not words:
        return cell.shown
    return page.cell(cell.shown, class_, cell.style, cell.small)


def _kept(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
