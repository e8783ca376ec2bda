"""The built site, as a reader opens it from disk: equations, search, no word to the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import watched
from tests.conftest import ROOT
from tests.docs.blocks import pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPENED = ("index.html", "method.html", "reading.html", "keys.html", "api.html",
          "how-to/size.html", "troubleshooting.html")  # fmt: skip
LINK = re.compile(r"\]\(([^)#\s]*)(?:#[^)\s]*)?\)")


def html(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_every_page_is_in_the_site(site: Path) -> None:
    """Would catch a page that nobody can find. Links and anchors: the build is strict."""
    for page in pages()[1:]:
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / str(name).replace("README", "index")).is_file(), name


def test_links_of_files_beside_the_site_lead_somewhere() -> None:
    """Would catch a broken link in what is read on GitHub only."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), target


def test_equations_are_equations(site: Path) -> None:
    """Would catch LaTeX that is shown as it is written, and a page that fetches a script for it."""
    method = html(site, "method.html")
    assert method.count("<math") > 40
    article = method.partition("<article")[2].partition("</article>")[0]
    assert "\\frac" not in article
    assert "$" not in article


def test_lists_are_lists(site: Path) -> None:
    """Would catch a list without a blank line above it, which GitHub shows and mkdocs does not."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        body = re.sub(r"<pre.*?</pre>", "", text.partition("<article")[2], flags=re.DOTALL)
        assert not re.search(r"<p>[^<]*(?:<(?!/p>)[^<]*)*\n(- |\d+\. )", body), path.name
        assert "\n| --- |" not in body, path.name


def test_the_api_is_there(site: Path) -> None:
    """Would catch a name that moved: its page would have no signature."""
    api = html(site, "api.html")
    for name in ("load_study", "register_measurement", "sample_second_order", "invert"):
        assert re.search(rf'id="[\w.]*\b{name}"', api), name


@pytest.mark.parametrize("name", OPENED)
def test_pages_open_from_disk_without_a_network(browser: Browser, site: Path, name: str) -> None:
    """Would catch a font, script or style from elsewhere, and an error in the console."""
    with watched(browser, site.as_uri()) as found:
        found.page.goto((site / name).as_uri())
        found.page.wait_for_load_state("load")
        assert found.page.locator("h1").first.is_visible()
        wide = found.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 1280, "the page scrolls sideways"
        assert not found.complaints


def test_the_search_works_from_disk(browser: Browser, site: Path) -> None:
    """Would catch a search that needs a server: the reader has none."""
    with watched(browser, site.as_uri()) as found:
        found.page.goto((site / "index.html").as_uri())
        field = found.page.get_by_placeholder("Search")
        field.click()
        field.press_sequentially("inversion_iterations")
        result = found.page.locator(".md-search-result__item a").first
        result.wait_for(state="visible")
        assert "html" in (result.get_attribute("href") or "")
        assert not found.complaints
