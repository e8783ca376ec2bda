"""Reports in these tests are written without drawing: layout and compression take most of a
report's time. Module fixtures and tests of figures draw."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mgdm_ray.results.report.figures import base


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="PNG")

    def png(figure: Figure) -> bytes:
        assert figure.axes
        return buffer.getvalue()

    monkeypatch.setattr(base, "png", png)
