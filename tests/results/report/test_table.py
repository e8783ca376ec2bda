"""One table, three ways."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.results.report.table import SPECIAL, Cell, Table, escape, interval, number, p_value
from mgdm_ray.results.report.words import DASH, GAMMA, MINUS, TIMES


def read_csv(sheet: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet.csv())))


def check_latex(tex: str) -> list[list[str]]:
    """What LaTeX would refuse: braces, environments, rows as wide as the columns. The rows."""
    plain = re.sub(r"\\[\\&%$#_{}]", "", tex)
    assert plain.count("{") == plain.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", tex) == re.findall(r"\\end\{(\w+)\}", tex)[::-1]
    assert [r for r in ("toprule", "midrule", "bottomrule") if f"\\{r}\n" in tex] == [
        "toprule", "midrule", "bottomrule",
    ]  # fmt: skip
    columns = re.search(r"\\begin\{tabular\}\{(.*)\}\n", tex)
    assert columns
    width = len(re.sub(r"p\{[^}]*\}", "p", columns[1]))
    body = tex[tex.index("\\toprule") : tex.index("\\bottomrule")]
    rows = [line[:-3] for line in body.splitlines() if line.endswith(r" \\")]
    split = [re.split(r"(?<!\\)&", row) for row in rows]
    assert {len(cells) for cells in split} == {width}
    assert plain.count("$") % 2 == 0
    return split


def test_csv_has_full_precision_and_latex_what_the_page_shows() -> None:
    """Catches a CSV of rounded numbers, and a spread or interval that only the page has."""
    third = 1 / 3
    mean = Cell("0.333 ± 0.100", third, {"sd": 0.1}, small="+0.012", class_="best")
    sheet = Table("t", ["arm", "d", "95 %"], [["real", mean, interval(-0.1, third)]], "Caption")
    assert read_csv(sheet) == [
        {"arm": "real", "d": repr(third), "d sd": "0.1", "95 % low": "-0.1",
         "95 % high": repr(third)}
    ]  # fmt: skip
    ((_, *heads), row) = check_latex(sheet.tex())
    assert [head.strip() for head in heads] == ["d", r"95 \%"]
    assert row[1].strip() == r"\textbf{0.333 $\pm$ 0.100} {\scriptsize +0.012}"
    assert "0.333 ± 0.100<small>+0.012</small>" in sheet.html()
    assert '<table id="table-t">' in sheet.html()


def test_what_is_absent_is_empty_in_the_csv() -> None:
    """Catches dashes and nans that a program would read as text."""
    cells: list[str | Cell] = [number(None), number(math.nan), p_value(math.nan), Cell(DASH)]
    rows: list[list[str | Cell]] = [["a", *cells], ["b", *(number(1.0) for _ in cells)]]
    sheet = Table("t", ["x", "1", "2", "3", "4"], rows)
    assert list(read_csv(sheet)[0].values()) == ["a", "", "", "", ""]
    assert list(read_csv(sheet)[1].values()) == ["b", "1.0", "1.0", "1.0", "1.0"]
    assert p_value(0.0004).shown == "< 0.001"


def test_special_characters_are_escaped() -> None:
    """Catches a class or file name that breaks the document, by hand."""
    assert escape("a_b & 50 % #1 {x} $y ~^\\") == (
        r"a\_b \& 50 \% \#1 \{x\} \$y \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert (
        escape(f"{GAMMA} ≤ 2 {TIMES} 3 {MINUS} 1 < 9") == r"$\gamma$ $\le$ 2 $\times$ 3 $-$ 1 $<$ 9"
    )


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4))
def test_any_text_gives_rows_as_wide_as_the_header(words: list[str]) -> None:
    """Catches a character that ends a cell, a row or a group early."""
    words = [" ".join(word.split()) or "x" for word in words]
    header = [f"{i} {word}" for i, word in enumerate(["".join(map(chr, SPECIAL)), *words])]
    check_latex(Table("t", header, [header, header]).tex())


def test_a_long_column_of_words_gets_a_width() -> None:
    """Catches reasons and citations that run off the paper."""
    sheet = Table("t", ["a", "b"], [["x", "word " * 20]], words=(1,))
    assert r"\begin{tabular}{lp{0.3\linewidth}}" in sheet.tex()


def test_a_row_of_another_width_is_refused() -> None:
    """Catches a column that slips under the wrong head."""
    with pytest.raises(ValueError, match=r"table t: .*1 .*2"):
        Table("t", ["a", "b"], [["x"]])


def test_two_columns_of_one_name_are_refused() -> None:
    """Catches a CSV in which a reader by name finds one of two columns."""
    with pytest.raises(ValueError, match=r"table t: .*'real'"):
        Table("t", ["a", "real", "real"], [])
