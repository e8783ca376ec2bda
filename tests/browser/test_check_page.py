"""The page of ``mgdm_ray.data check`` as its owner opens it: from disk, alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mgdm_ray.cli.data import main
from tests.browser.conftest import watched
from tests.data.sources.files import tree

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAPER_WIDTH = 718
"""CSS pixels between the margins of A4."""


def test_it_opens_alone_and_fits_the_paper(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a request, a script's complaint, a picture that is none, a name that is markup,
    and what falls off the paper."""
    monkeypatch.chdir(tmp_path)
    root = tree(tmp_path / "scans", {"<b>bold & long " + "x" * 80: 8, "b": 8})
    copy = root / "b" / "<img src=nowhere>.png"
    copy.write_bytes((root / "b" / "0.png").read_bytes())
    assert main(["check", str(root)]) == 0
    address = (tmp_path / "check-scans.html").as_uri()
    with watched(browser, address) as seen:
        seen.page.goto(address)
        seen.page.wait_for_load_state("networkidle")
        assert seen.complaints == []
        widths = seen.page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        assert len(widths) >= 17
        assert set(widths) == {64}
        assert seen.page.locator("figure.pair img").count() == 2
        assert seen.page.locator("p.keep").is_visible()
        seen.page.set_viewport_size({"width": PAPER_WIDTH, "height": 1000})
        seen.page.emulate_media(media="print")
        right = seen.page.evaluate("document.documentElement.scrollWidth")
        assert right <= PAPER_WIDTH
