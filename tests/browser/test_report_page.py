"""report.html as a reader opens it: from disk, with or without scripts, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from mgdm_ray.results import ANSWER_FILE
from mgdm_ray.results.report.words import MINUS
from tests.browser.conftest import Watched, watched
from tests.browser.finished_study import ARMS, Finished

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAPER_WIDTH = 718
"""CSS pixels between the margins of A4: 210 mm less 2 x 1 cm, at 96 per inch."""

# (red, green, blue) of a text and of what is behind it; a translucent layer is mixed in.
COLOURS = """element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  let behind = [255, 255, 255], layers = [];
  for (let at = element; at; at = at.parentElement) {
    const layer = numbers(getComputedStyle(at).backgroundColor);
    layers.unshift(layer.length < 4 ? [...layer, 1] : layer);
  }
  for (const [r, g, b, a] of layers)
    behind = [r, g, b].map((value, i) => a * value + (1 - a) * behind[i]);
  return [numbers(getComputedStyle(element).color).slice(0, 3), behind];
}"""


@pytest.fixture
def report(browser: Browser, finished: Finished) -> Iterator[Watched]:
    yield from opened(browser, finished)


@pytest.fixture
def without_scripts(browser: Browser, finished: Finished) -> Iterator[Watched]:
    yield from opened(browser, finished, scripts=False)


def opened(browser: Browser, finished: Finished, *, scripts: bool = True) -> Iterator[Watched]:
    address = (finished.folder / "report.html").as_uri()
    with watched(browser, address, scripts=scripts) as found:
        found.page.goto(address)
        yield found


def luminance(rgb: list[float]) -> float:
    """Relative luminance, WCAG 2.2; ``rgb`` in [0, 255]."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colours: list[list[float]]) -> float:
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    """Would catch a formula that lets unreadable text pass: the extremes, and WCAG's grey."""
    assert contrast([[0, 0, 0], [255, 255, 255]]) == pytest.approx(21)
    assert contrast([[119, 119, 119], [255, 255, 255]]) == pytest.approx(4.48, abs=0.01)


def test_it_opens_from_disk_alone(report: Watched) -> None:
    """Would catch a font, style or picture from elsewhere, and a script that fails."""
    report.page.wait_for_load_state("networkidle")
    assert report.complaints == []
    sizes = report.page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert len(sizes) >= 3
    assert min(sizes) > 0


def test_the_first_screen_answers_without_scripts(
    without_scripts: Watched, finished: Finished
) -> None:
    """Would catch an answer that has to be scrolled to, or that a script must write."""
    lead = without_scripts.page.locator(".answer .lead")
    box = lead.bounding_box()
    assert box is not None
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 800
    said = " ".join(lead.inner_text().replace(MINUS, "-").split())
    assert " ".join((finished.folder / ANSWER_FILE).read_text().split()) in said


def test_tables_and_figures_need_no_scripts(without_scripts: Watched) -> None:
    """Would catch tables and figures that only a script fills in."""
    table = without_scripts.page.locator("#results table").first
    assert table.is_visible()
    for arm in ARMS:
        assert table.get_by_text(arm, exact=True).is_visible()
    figures = without_scripts.page.locator("figure.plot img")
    assert figures.count() >= 2
    box = figures.first.bounding_box()
    assert box is not None
    assert box["height"] > 100


def test_no_table_is_cut_off_on_paper(report: Watched) -> None:
    """Would catch columns that a reader of the print never sees: paper does not scroll."""
    report.page.set_viewport_size({"width": PAPER_WIDTH, "height": 1000})
    report.page.emulate_media(media="print")
    # Anything that is wider than its box, or that reaches over the paper's edge.
    wide: list[Any] = report.page.eval_on_selector_all(
        "table, pre, figure img, .scroll",
        """(all, width) => all.filter(one => one.scrollWidth > one.clientWidth + 1
             || one.getBoundingClientRect().right > width + 1)
           .map(one => one.outerHTML.slice(0, 120) + one.getBoundingClientRect().right)""",
        PAPER_WIDTH,
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(report: Watched, scheme: Literal["light", "dark"]) -> None:
    """Would catch grey on grey where the reader's screen is dark: WCAG asks for 4.5."""
    report.page.emulate_media(color_scheme=scheme)
    found = {
        f"{selector} {index}": round(contrast(one.evaluate(COLOURS)), 2)
        for selector in (".answer .lead", ".question", ".note", "th", "td", "td small", ".badge")
        for index, one in enumerate(report.page.locator(f"{selector}:visible").all()[:40])
    }
    assert len(found) > 50
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
