"""MLflow's pages as a user finds them: by what the study printed and what its run links to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from mgdm_ray.tracking.links import UI_DEFAULT
from tests.browser.conftest import Watched, watched
from tests.browser.finished_study import ARMS, LEVEL, Finished

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def ui(browser: Browser, mlflow_ui: str) -> Iterator[Watched]:
    """A page that must not complain while a test uses it."""
    with watched(browser, mlflow_ui, viewport={"width": 1900, "height": 1000}) as found:
        yield found
        assert found.complaints == []


def open_comparison(ui: Watched, finished: Finished) -> None:
    ui.page.goto(finished.said_after("then:").replace(UI_DEFAULT, ui.home))
    ui.page.get_by_text(f"Comparing {len(ARMS)} Runs").wait_for()


def compared(ui: Watched, name: str) -> list[str]:
    """What the comparison shows in the row of this name, arm by arm."""
    head = ui.page.locator("th").get_by_text(name, exact=True)
    row = ui.page.locator("tr").filter(has=head).first
    row.wait_for()
    return [value.strip() for value in row.locator(":scope > *").all_inner_texts()[1:]]


def test_the_printed_address_compares_the_arms(ui: Watched, finished: Finished) -> None:
    """Would catch a link that opens an empty page, wrong runs, or runs without their scores."""
    open_comparison(ui, finished)
    assert compared(ui, "Run Name:") == list(ARMS)
    assert compared(ui, "arm") == list(ARMS)
    for dataset in (None, *LEVEL):
        name = "balanced_accuracy" + (f"/{dataset}" if dataset else "")
        shown = [float(value) for value in compared(ui, name)]
        assert shown == pytest.approx([finished.mean(arm, dataset) for arm in ARMS], abs=5e-4)


def test_the_comparison_is_drawn(ui: Watched, finished: Finished) -> None:
    """Would catch runs that the plots take for constant or cannot place: params that vary, and a
    metric that all have, are what the plot begins with."""
    open_comparison(ui, finished)
    plot = ui.page.locator(".js-plotly-plot").first
    plot.wait_for()
    for word in ("arm", "balanced_accuracy", *ARMS):
        plot.get_by_text(word, exact=True).first.wait_for()


def test_the_study_leads_to_the_comparison(ui: Watched, finished: Finished) -> None:
    """Would catch a description whose link MLflow strips, or that names another host."""
    ui.page.goto(f"{ui.home}/#/experiments")
    ui.page.get_by_role("link", name="mgdm-ray", exact=True).first.click()
    ui.page.get_by_role("link", name="browsed", exact=True).first.click()
    ui.page.get_by_role("link", name="Compare the arms").click()
    ui.page.get_by_text(f"Comparing {len(ARMS)} Runs").wait_for()
    assert compared(ui, "Run Name:") == list(ARMS)
    assert ui.page.url == finished.said_after("then:").replace(UI_DEFAULT, ui.home)


def test_the_study_shows_answer_and_files(ui: Watched, finished: Finished) -> None:
    """Would catch a parent run without the contrasts, or without what the report is made of."""
    experiment, run = parent(ui)
    ui.page.goto(f"{ui.home}/#/experiments/{experiment}/runs/{run}")
    numbers = json.loads((finished.folder / "headline.json").read_text())
    assert {f"contrast/disturb-duplicate/{n}" for n in ("difference", "low", "high", "p_holm")} < {
        *numbers
    }
    for name, value in numbers.items():
        row = ui.page.get_by_role("row").filter(has=ui.page.get_by_text(name, exact=True))
        assert float(row.inner_text().split()[-1]) == pytest.approx(value, abs=1e-6)
    ui.page.get_by_role("tab", name="Artifacts").click()
    for name in ("report.html", "records.jsonl", "study.resolved.yaml", "figures", "tables"):
        if not (finished.folder / name).exists():
            continue
        ui.page.get_by_text(name, exact=True).first.wait_for()
    ui.page.get_by_text("figures", exact=True).first.click()
    ui.page.get_by_text("contrasts.png", exact=True).first.wait_for()


def parent(ui: Watched) -> tuple[str, str]:
    ui.page.goto(f"{ui.home}/#/experiments/1/runs")
    ui.page.screenshot(path="/tmp/br/runs.png")
    ui.page.get_by_role("link", name="browsed", exact=True).first.wait_for()
    ui.page.screenshot(path="/tmp/br/runs.png")
    href = ui.page.get_by_role("link", name="browsed", exact=True).first.get_attribute("href")
    print(href)
    parts = href.split("/")
    return parts[-3], parts[-1]
