"""MLflow's pages as a user finds them: by what the study printed and what its run links to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from mgdm_ray.results.mlflow.tracker import TRAINING, UI_DEFAULT
from tests.browser.conftest import Watched, watched
from tests.browser.finished_study import ARMS, LEVEL, Finished

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# The metrics of the comparison are two grids side by side, placed by coordinates: names, values.
ROW = """(grids, name) => {
  const cells = grid => [...grid.querySelectorAll("[role=rowgroup] > div")];
  const [names, values] = grids.map(cells);
  const head = names.find(cell => cell.innerText.trim() === name);
  return values.filter(cell => cell.style.top === head.style.top)
    .sort((a, b) => parseFloat(a.style.left) - parseFloat(b.style.left))
    .map(cell => cell.innerText.trim());
}"""


@pytest.fixture
def ui(browser: Browser, mlflow_ui: str) -> Iterator[Watched]:
    """A page that must not complain while a test uses it; wide, as MLflow draws what is in view."""
    with watched(browser, mlflow_ui, 2600, 1600) as found:
        yield found
        assert found.complaints == []


def open_comparison(ui: Watched, finished: Finished) -> None:
    ui.page.goto(finished.said_after("then:").replace(UI_DEFAULT, ui.home))
    wait_for_comparison(ui)


def wait_for_comparison(ui: Watched) -> None:
    ui.page.get_by_text(f"Comparing {len(ARMS)} Runs").wait_for()
    ui.page.get_by_role("grid").get_by_text("balanced_accuracy", exact=True).wait_for()


def open_study(ui: Watched, finished: Finished) -> None:
    """From the experiment's runs. (From the list of experiments MLflow 3 opens its view for
    language models, where a user presses "Model training".)"""
    experiment = unquote(finished.said_after("then:")).partition("experiments=")[2]
    (number,) = json.loads(experiment.partition("&")[0])
    ui.page.goto(f"{ui.home}/#/experiments/{number}/runs?{TRAINING}")
    ui.page.get_by_role("link", name="browsed", exact=True).first.click(timeout=9000)


def compared(ui: Watched, name: str) -> list[str]:
    """What the comparison shows of a param or of the run, arm by arm."""
    head = ui.page.locator("th").get_by_text(name, exact=True)
    row = ui.page.locator("tr").filter(has=head).first
    return [value.strip() for value in row.locator(":scope > *").all_inner_texts()[1:]]


def test_the_printed_address_compares_the_arms(ui: Watched, finished: Finished) -> None:
    """Would catch a link that opens an empty page, wrong runs, or runs without their scores."""
    open_comparison(ui, finished)
    assert compared(ui, "Run Name:") == list(ARMS)
    assert compared(ui, "arm") == list(ARMS)
    assert compared(ui, "cells") == ["4"] * len(ARMS)
    for dataset in (None, *LEVEL):
        name = "balanced_accuracy" + (f"/{dataset}" if dataset else "")
        shown = ui.page.get_by_role("grid").evaluate_all(ROW, name)
        means = [finished.mean(arm, dataset) for arm in ARMS]
        assert [float(value) for value in shown] == pytest.approx(means, abs=6e-4)


def test_the_comparison_is_drawn(ui: Watched, finished: Finished) -> None:
    """Would catch runs that MLflow cannot place: its plot begins with the params that vary."""
    open_comparison(ui, finished)
    plot = ui.page.locator(".js-plotly-plot").first
    for word in ("arm", *ARMS):
        plot.get_by_text(word, exact=True).first.wait_for()


def test_the_study_leads_to_the_comparison(ui: Watched, finished: Finished) -> None:
    """Would catch a description whose link MLflow strips, or that names another host."""
    open_study(ui, finished)
    with ui.page.expect_popup() as opened:
        ui.page.get_by_role("link", name="Compare the arms").click()
    ui.page = opened.value
    ui.watch()
    wait_for_comparison(ui)
    assert compared(ui, "Run Name:") == list(ARMS)
    assert ui.page.url == finished.said_after("then:").replace(UI_DEFAULT, ui.home)


def test_the_study_shows_answer_and_files(ui: Watched, finished: Finished) -> None:
    """Would catch a parent run without the contrasts, or without what the report is made of."""
    numbers = json.loads((finished.folder / "headline.json").read_text())
    names = ("difference", "here/low", "here/high", "here/p_holm", "general/low", "cells")
    assert {f"contrast/disturb-duplicate/{name}" for name in names} <= set(numbers)
    open_study(ui, finished)
    for name, value in numbers.items():
        row = ui.page.get_by_role("row").filter(has=ui.page.get_by_text(name, exact=True))
        assert float(row.inner_text().split()[-1]) == pytest.approx(value, abs=1e-6)
    ui.page.get_by_role("tab", name="Artifacts").click()
    for name in ("report.html", "records.jsonl", "tables", "figures", "contrasts.png"):
        entry = ui.page.get_by_text(name, exact=True).first
        entry.wait_for()
        if name == "figures":
            entry.click()
