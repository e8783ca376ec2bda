"""docs/keys.md: the page says what the models say."""

from __future__ import annotations

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
