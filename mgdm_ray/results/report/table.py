"""A table of the report: HTML for the page, CSV in full precision, and LaTeX."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from mgdm_ray.results.report.page import render
from mgdm_ray.results.report.words import DASH, decimal, signed, span

LONG = 28  # characters; a column of words that has longer ones gets a width in LaTeX
SPECIAL = str.maketrans(
    {
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
)


@dataclass(frozen=True)
class Cell:
    """One place of a table, for people and for programs."""

    shown: str
    """On the page and in LaTeX."""
    value: object = None
    """In the CSV, in full precision; None: as shown, unless there are ``parts``."""
    parts: Mapping[str, object] = field(default_factory=dict)
    """Further values for the CSV; each becomes a column named after this one: ``disturb sd``."""
    small: str = ""
    """A second, fainter line."""
    class_: str = ""
    """``best`` is bold."""
    style: str = ""
    html: Markup | None = None
    """Takes the place of ``shown`` on the page."""

    def plain(self) -> object:
        """Its CSV value; None where there is none."""
        if self.value is not None or self.parts or self.shown == DASH:
            return self.value
        return self.shown

    def tex(self) -> str:
        shown = escape(self.shown)
        if "best" in self.class_:
            shown = rf"\textbf{{{shown}}}"
        return shown + (rf" {{\scriptsize {escape(self.small)}}}" if self.small else "")


Row = list[str | Cell]


def number(value: float | None, digits: int = 3, sign: bool = False, class_: str = "") -> Cell:
    """A rounded number; a dash for None and nan."""
    if value is None or math.isnan(value):
        return Cell(DASH, math.nan)
    return Cell((signed if sign else decimal)(value, digits), value, class_=class_)


def interval(low: float, high: float, digits: int = 3) -> Cell:
    return Cell(span(low, high, digits), parts={"low": low, "high": high})


def p_value(value: float) -> Cell:
    """Three digits, ``< 0.001`` below; a dash for nan."""
    if math.isnan(value):
        return Cell(DASH)
    return Cell(f"{value:.3f}" if value >= 0.001 else "< 0.001", value)


@dataclass(frozen=True)
class Table:
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

    @property
    def cells(self) -> list[list[Cell]]:
        return [[Cell(c) if isinstance(c, str) else c for c in row] for row in self.rows]

    def html(self) -> Markup:
        return render("table", table=self)

    def csv(self) -> str:
        columns: dict[str, list[object]] = {}
        rows = self.cells
        for i, title in enumerate(self.header):
            cells = [row[i] for row in rows]
            parts = dict.fromkeys(name for cell in cells for name in cell.parts)
            if not parts or any(cell.value is not None for cell in cells):
                columns[title] = [cell.plain() for cell in cells]
            for name in parts:
                columns[f"{title} {name}"] = [cell.parts.get(name) for cell in cells]
        return csv_text(pd.DataFrame(columns, dtype=object))

    def tex(self) -> str:
        """A ``table`` for the package booktabs; rounded as on the page."""
        frame = pd.DataFrame(
            [[cell.tex() for cell in row] for row in self.cells],
            columns=[escape(title) for title in self.header],
        )
        text = frame.to_latex(
            index=False,
            escape=False,
            caption=escape(self.caption or self.name),
            label=f"tab:{self.name}",
            column_format="".join(self._column(i) for i in range(len(self.header))),
        )
        return f"% needs \\usepackage{{booktabs}}\n{text}"

    def _column(self, index: int) -> str:
        if index and index not in self.words:
            return "r"
        longest = max((len(row[index].shown) for row in self.cells), default=0)
        return r"p{0.3\linewidth}" if longest > LONG else "l"


def csv_text(frame: pd.DataFrame) -> str:
    """Without index; None and nan are empty."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def escape(words: str) -> str:
    """Text as LaTeX shows it as it is."""
    return words.translate(SPECIAL)
