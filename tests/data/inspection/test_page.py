"""The page of a check: what it shows, what it escapes, who may read it."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.config import InputError
from mgdm_ray.data.inspection import page
from mgdm_ray.data.inspection.findings import Finding, Pair
from mgdm_ray.data.inspection.page import refused_section, section_of, write_page
from tests.data.inspection.surveys import fact, made, several

ATTACK = "\"'><script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """Tags and their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def written(folder: Path, *sections: page.Section, title: str = "Check") -> str:
    write_page(folder / "p.html", title, sections)
    return (folder / "p.html").read_text(encoding="utf-8")


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    """Catches a class, file, path, finding or title that adds an element or an attribute."""
    items = [replace(item, path=f"{ATTACK}/{k}") for k, item in enumerate(several())]
    survey = made(items)
    survey.listing = replace(survey.listing, classes=(ATTACK, "b"))
    config = survey.source.config.model_copy(update={"name": ATTACK, "path": ATTACK})
    survey.source = replace(survey.source, config=config)
    finding = Finding("error", ATTACK, ATTACK)
    sections = [
        section_of(survey, [finding], [[0, 2]], [Pair(0, 10, 0.995)]),
        refused_section(ATTACK, finding),
    ]
    text = written(tmp_path, *sections, title=ATTACK)
    elements = Elements(text)
    assert {name for name, _ in elements.found}.isdisjoint({"script", "iframe", "link", "a"})
    assert all(set(image) == {"src", "alt", "title"} for image in elements.of("img"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in elements.of("img"))
    assert "49" not in re.sub('base64,[^"]*', "", text), "a name is no template"


def test_what_is_shown(tmp_path: Path) -> None:
    """Catches pairs, odd images or classes that are lost, and limits that hide how many."""
    facts = [fact(k) for k in range(120)]
    facts[7], facts[8] = fact(7, constant=True), fact(8, text=True)
    facts[9] = fact(9, width=90)
    survey = made(several(120), facts)
    pairs = [Pair(0, k, 0.995) for k in range(1, 31)]
    text = written(tmp_path, section_of(survey, [Finding("ok", "fine")], [[0, 2, 4]], pairs))
    elements = Elements(text)
    shown = [figure for figure in elements.of("figure") if figure.get("class") == "pair"]
    assert len(shown) == page.PAIRS
    assert f"<p>{2 + 30 - page.PAIRS} " in text
    headings = re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h3>|</section>)", text, re.DOTALL)
    numbers = [content.count("<img") for _, content in headings]
    assert numbers == [0, 0, 2 * page.PAIRS, page.ODD, 1, 1, 1, 2 * page.PER_CLASS]


def test_many_classes(tmp_path: Path) -> None:
    """Catches a page of a thousand classes that no browser opens."""
    survey = made(several())
    names = tuple(f"c{k}" for k in range(100))
    items = [replace(item, label=k % 24) for k, item in enumerate(several())]
    survey.listing = replace(survey.listing, classes=names, items=tuple(items))
    text = written(tmp_path, section_of(survey, [], [], []))
    assert f"<p>{100 - page.MOST_CLASSES} " in text


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    """Catches patients' images that a whole department can open, also where a page was before."""
    (tmp_path / "p.html").write_text("OLD PAGE")
    (tmp_path / "p.html").chmod(0o644)
    assert "OLD PAGE" not in written(tmp_path, refused_section("mine", Finding("error", "none")))
    assert stat.S_IMODE((tmp_path / "p.html").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]
    with pytest.raises(InputError, match=r"--out .*nowhere"):
        write_page(tmp_path / "nowhere" / "p.html", "x", [])


def test_odd_characters_in_names(tmp_path: Path) -> None:
    """Catches a file name that is no UTF-8 and ends the check at its last step."""
    section = refused_section("mine", Finding("error", "b\udce9nin.png"))
    assert "nin.png" in written(tmp_path, section)
