"""Reports in these tests are written without drawing: layout and compression take most of a
report's time. Fixtures of a wider scope and tests of figures draw."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mgdm_ray.results.report import write_report
from mgdm_ray.results.report.figures import base
from tests.judged_example import add_judged, add_ratios
from tests.study_example import ARMS, DATASETS, Example, make_example


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="PNG")

    def png(figure: Figure) -> bytes:
        assert figure.axes
        return buffer.getvalue()

    monkeypatch.setattr(base, "png", png)


@pytest.fixture(scope="package")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A study with some of everything: failed cells, searches, a judge, a ratio curve."""
    example = make_example(tmp_path_factory.mktemp("artefacts"))
    for dataset, facts in DATASETS.items():
        add_judged(example, dataset, len(facts["classes"]), ARMS)  # type: ignore[arg-type]
        points = {("disturb", 0.5, s): 0.6 for s in (0, 1)} | {("generate", 2.0, 0): 0.7}
        add_ratios(example, dataset, "squeezenet1_1", points)
    return example


@pytest.fixture(scope="package")
def written(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("study"), example.records, example.context())
