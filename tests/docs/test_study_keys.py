"""docs/keys.md: the page says what the models say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from docs import study_keys
from mgdm_ray.config import StudyConfig
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    """Would catch a key, a default or a range that changed without the page."""
    # In a process of its own: other tests register measurements, which the page would name.
    printed = subprocess.run(
        [sys.executable, "-m", "docs.study_keys"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    page = study_keys.PAGE.read_text(encoding="utf-8")
    assert printed == f"{page}\n", "run: python -m docs.study_keys --write"


@pytest.mark.parametrize(
    ("place", "name"),
    [(p, n) for p, model in study_keys.sections(StudyConfig, "") for n in model.model_fields],
)
def test_every_key_has_a_meaning(place: str, name: str) -> None:
    """Would catch a key without a docstring, which the page would show without a word."""
    model = dict(study_keys.sections(StudyConfig, ""))[place]
    field = model.model_fields[name]
    assert field.description or study_keys.models_in(field.annotation)


def test_what_no_study_sets_is_advanced() -> None:
    """Would catch a beginner's key among the rare ones, or the other way round."""
    page = study_keys.PAGE.read_text(encoding="utf-8")
    section = page.partition("## `denoiser`\n")[2].partition("\n## ")[0]
    basic, advanced = section.split("**Advanced**")
    assert "| `steps` |" in basic
    assert "| `loss_weight` |" in advanced
    parts = [part for part in page.split("\n## ") if "**Advanced**" in part]
    rows = [row for part in parts for row in re.findall(r"^\| `", part.split("**Adv")[1], re.M)]
    assert 30 < len(rows) < 100
