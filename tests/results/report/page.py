"""Read a written report as a browser and a spreadsheet do; one cell to write it from."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

from mgdm_ray.storage.records import Record

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects what the page loads and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.badges: list[str] = []
        self.terms: list[str] = []
        """Of definition lists."""
        self.sections: dict[str, str] = {"head": ""}
        """Words by section; before the first one ``head``."""
        self._classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.loads += [given[name] or "" for name in ("src", "href") if name in given]
        self.ids.add(given.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)
            self._classes.append(given.get("class") or "")
        if tag == "section":
            self.sections[given["id"] or ""] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._classes.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        section = list(self.sections)[-1]
        self.sections[section] = " ".join(f"{self.sections[section]} {data}".split())
        if self._classes and self._classes[-1].startswith("badge"):
            self.badges.append(data)
        if self.open[-1:] == ["dt"]:
            self.terms.append(data)


def read_page(path: Path) -> tuple[Page, str]:
    checker = Page()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker, " ".join(" ".join(checker.words).split())


def rows_of(path: Path, name: str) -> list[dict[str, str]]:
    """Of a table beside the page."""
    with (path.parent / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def cell(arm: str, value: float, seed: int = 0, network: str = "n", dataset: str = "d") -> Record:
    return Record(
        key=f"{dataset}-{network}-{arm}-{seed}", kind="fit_downstream", status="done", split="test",
        dataset=dataset, network=network, arm=arm, seed=seed,
        metrics={"balanced_accuracy": value},
    )  # fmt: skip
