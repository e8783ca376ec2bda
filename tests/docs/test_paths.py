"""Files and names that pages mention: they must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import INLINE, pages

MENTIONED = re.compile(r"(?P<path>([\w.-]+/)+[\w.-]+\.(py|json|md|sh|j2))(::(?P<name>\w+))?")
SOURCES = ("mgdm_ray", "tests", "docs", "cluster", "benchmarks", "studies")
READ = [*pages(), *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("page", READ, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_names_exist(page: Path) -> None:
    """Would catch a page that names a module or a function that has moved."""
    for code in INLINE.findall(page.read_text(encoding="utf-8")):
        found = MENTIONED.fullmatch(code)
        if found is None:
            continue
        path, name = found["path"], found["name"]
        places = [ROOT / path, ROOT / "mgdm_ray" / path, page.parent / path]
        source = next((place for place in places if place.is_file()), None)
        assert source or path.split("/")[0] not in (*SOURCES, *rooms()), f"{path} does not exist"
        if source and name:
            assert re.search(rf"\b{name}\b", source.read_text(encoding="utf-8")), code


def rooms() -> list[str]:
    return [folder.name for folder in (ROOT / "mgdm_ray").iterdir() if folder.is_dir()]
