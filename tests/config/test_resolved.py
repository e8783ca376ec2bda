"""study.resolved.yaml: every value with where it came from, and a study file like any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_ray.config import InputError, load_study
from mgdm_ray.config.file import read_study
from mgdm_ray.config.resolved import changes, resolved_text
from tests.conftest import ROOT, TINY

FILE = """\
name: mine
datasets:
  - phantom-fundus
  - {name: retinamnist, train_size: [50, 200]}
  - {name: own, path: own.npz, task: binary, size: 64}
image_size: 32
networks: [resnet18,
           alexnet]
denoiser: {recipe: paper, steps: 7}
search:
  networks: [alexnet]
  start:
    - {measurement: entropy, uncertainty_scale: 0.1}
"""
OVERRIDES = ["guide.steps=9", "networks.1=swin_t", "judge={network: resnet34, steps: 5}"]


def resolved(path: Path, *overrides: str) -> str:
    return resolved_text(*read_study(path, overrides))


@pytest.fixture
def origins(tmp_path: Path) -> dict[str, str]:
    """Per line of the resolved file, its origin."""
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    rows = [line.split("  # ") for line in resolved(path, *OVERRIDES).splitlines()[1:]]
    assert {len(row) for row in rows if not row[0].endswith(":")} == {2}, "a value without origin"
    return {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("name: mine", "line 1"),
        ("- name: phantom-fundus", "line 3"),
        ("- name: retinamnist-200", "line 4"),
        ("  source: retinamnist", "line 4"),
        ("  train_size: 200", "line 4"),
        ("  size: 32", "line 6"),
        ("  size: 64", "line 5"),
        ("    imbalance: 1.0", "default"),
        ("networks: [resnet18, swin_t]", "line 7, --set networks.1"),
        ("seeds: [0, 1, 2]", "default"),
        ("  recipe: paper", "line 9"),
        ("  schedule: linear", "line 9"),
        ("  ema_decay: 0.995", "default"),
        ("  steps: 7", "line 9"),
        ("  steps: 9", "--set guide.steps"),
        ("  network: resnet34", "--set judge"),
        ("  steps: 5", "--set judge"),
        ("  - measurement: entropy", "line 13"),
        ("    guidance_scale: null", "default"),
    ],
)
def test_the_origin_stands_behind_each_value(
    origins: dict[str, str], value: str, origin: str
) -> None:
    """Would catch a value blamed on a neighbour's line, above all behind a list of sizes."""
    assert origins[value] == origin


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.name)
def test_a_shipped_study_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    """Would catch a resolved file that is another study, or that grows when it is resolved."""
    again = tmp_path / "again.yaml"
    again.write_text(resolved(path), encoding="utf-8")
    assert load_study(again) == load_study(path)
    twice = resolved(again)
    assert "default\n" not in twice.partition("\n")[2]
    assert yaml.safe_load(twice) == yaml.safe_load(again.read_text(encoding="utf-8"))


TEXTS = st.text(min_size=1, max_size=12).filter(lambda t: t.isprintable() or "\n" in t)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "seeds": st.integers(1, 5) | st.lists(st.integers(0, 99), min_size=1, unique=True),
        "data_dir": TEXTS | st.none(),
        "storage": TEXTS,
        "denoiser.recipe": st.sampled_from(["small", "paper"]),
        "denoiser.learning_rate": st.floats(1e-12, 1),
        "denoiser.grad_clip": st.none() | st.floats(1e-3, 1e6),
        "networks.1": st.sampled_from(["swin_t", "timm/resnet10t", "resnet18"]),
        "datasets.0.phantom.difficulty": st.floats(0, 1),
        "search": st.none() | st.just({"trials": 2, "start": []}),
        "judge": st.none() | st.just({"network": "resnet34"}),
        "tracking.experiment": st.sampled_from(["on", "1e3", "null-", "2020-01-01", "0x1f"]),
        "resources.train_workers": st.just([1, 4]) | st.integers(1, 4),
        "search.space.per_measurement": st.just(
            {"entropy": {"uncertainty_scale": {"low": 1e-05, "high": 2}}}
        ),
    },
)


@settings(max_examples=40, deadline=None)
@given(changes=CHANGES)
def test_whatever_is_set_the_resolved_file_is_the_same_study(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    """Would catch a text, number or list that does not survive being written down."""
    folder = tmp_path_factory.getbasetemp()
    path, again = folder / "study.yaml", folder / "again.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(TINY), sort_keys=False), encoding="utf-8")
    if changes.get("search", 0) is None:
        changes.pop("search.space.per_measurement", None)
    overrides = [f"{k}={yaml.safe_dump(v, default_flow_style=True)}" for k, v in changes.items()]
    study = load_study(path, overrides)
    again.write_text(resolved(path, *overrides), encoding="utf-8")
    assert load_study(again) == study


def test_what_a_comment_may_not_hold_is_left_out(tmp_path: Path) -> None:
    """Would catch a file's name that ends the comment and becomes a key of the study."""
    path = tmp_path / "a\nseed: 9\x07.yaml"
    path.write_text(yaml.safe_dump(TINY))
    again = tmp_path / "again.yaml"
    again.write_text(resolved(path))
    assert load_study(again) == load_study(path)


MISTAKES = [
    ("networks", ["resnet19"], "unknown network 'resnet19' in networks[0]; did you mean 'resnet1"),
    ("arms", ["distrub"], "unknown value 'distrub' in arms[0]; did you mean 'disturb'?"),
    ("seeds", 0, "a number of seeds must be in 1 .. 1000; got 0 (in seeds)"),
    ("downstream", {"steps": -1}, "downstream.steps: input should be greater than 0; got -1"),
    ("guide", {"stesp": 1}, "unknown key 'stesp' in guide.stesp; did you mean 'steps'?"),
    ("image_size", "big", "image_size: input should be a valid integer"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_a_wrong_set_is_told_as_well_as_a_wrong_line(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    """Would catch an override that passes by the checks, or is told in other words."""
    path = tmp_path / "study.yaml"
    told = []
    for study, overrides in (({**TINY, key: value}, []), (TINY, [f"{key}={json.dumps(value)}"])):
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        with pytest.raises(InputError) as error:
            load_study(path, overrides)
        told.append(str(error.value))
    assert len(told[0].splitlines()) == len(told[1].splitlines()) == 1
    assert told[0].startswith(f"{path}:")
    assert told[1].startswith(f"--set {key}=")
    words = [text[text.index(message) :] for text in told]
    assert words[0] == words[1]


def test_behind_a_list_of_sizes_a_mistake_has_its_own_line(tmp_path: Path) -> None:
    """Would catch counting datasets as they are resolved, not as they are written."""
    path = tmp_path / "study.yaml"
    path.write_text(FILE.replace("size: 64", "size: 6"))
    with pytest.raises(InputError, match=r"study\.yaml:5: datasets\[2\]\.size: .*; got 6"):
        load_study(path)


def test_changes_are_what_results_depend_on(tmp_path: Path) -> None:
    """Catches a report that is replaced by another study's without a word, and a word where only
    the place or the machine differs, or where a newer version has a key more."""
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    before = resolved(path)
    assert changes(before, read_study(path, [])[0]) == []
    beside = ["storage=elsewhere", "resources.max_retries=7", "data_dir=d"]
    assert changes(before, read_study(path, beside)[0]) == []
    other = read_study(path, ["seeds=5", "guide.steps=9", "networks.1=swin_t", "judge.steps=5"])
    assert sorted(changes(before, other[0])) == ["guide.steps", "judge.steps", "networks", "seeds"]
    older = "\n".join(line for line in before.splitlines() if not line.startswith("seeds:"))
    assert changes(older, other[0])[-1:] != ["seeds"]
    for text in ("", "[1", "just text"):
        assert changes(text, other[0]) == []
