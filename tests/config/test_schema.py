"""The JSON Schema of study files: in step with the models, and no narrower than they are."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mgdm_ray.config import ARMS, RECIPES, REFERENCE_FAULTS, TORCHVISION, StudyConfig
from mgdm_ray.config.file import _models
from mgdm_ray.config.schema import as_text, study_schema
from tests.conftest import ROOT, TINY

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
FILE = ROOT / "studies" / "study.schema.json"
SCHEMA = study_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


RANGE = {"low": 1, "high": 2}


def accepted(study: Any) -> bool:
    return bool(VALIDATOR.is_valid(study))


def test_the_committed_schema_is_the_generated_one() -> None:
    """Would catch a key that editors call unknown, because the file was not written anew."""
    again = "python -m mgdm_ray.config.schema > studies/study.schema.json"
    assert FILE.read_text(encoding="utf-8") == as_text(), f"write it anew: {again}"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_command_writes_it_without_torch() -> None:
    """Would catch a command that prints something else, or takes seconds for its imports."""
    words = "import sys, runpy; runpy.run_module('mgdm_ray.config.schema', run_name='__main__'); "
    words += "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == as_text()


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_shipped_study_names_the_schema_and_obeys_it(path: Any) -> None:
    """Would catch a shipped study that an editor paints red, or that has no completion."""
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={FILE.name}"
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "change",
    [
        {"datasets": ["phantom-fundus", {"name": "retinamnist", "train_size": [50, 200]}]},
        {"datasets": [{"name": "own", "path": "own.npz", "task": "binary"}]},
        {"seeds": 3},
        {"seeds": [3, 5]},
        {"judge": None, "search": None},
        {"networks": ["timm/resnet10t", "swin_t"]},
        {"setting": {"measurement": "one_of_the_users"}},
        {"resources": {"train_workers": [1, 4]}},
        {"sampling": {"batch_size": "auto"}},
        {"downstream": {"recipes": {"resnet18": {"batch_size": 8}}}},
        {"search": {"space": {"per_measurement": {"margin": {"uncertainty_scale": RANGE}}}}},
    ],
)
def test_what_may_be_written_shortly_is_accepted(change: dict[str, Any]) -> None:
    """Would catch a schema of what the models hold instead of what people write."""
    assert accepted(TINY)
    assert accepted({**TINY, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"netwroks": ["alexnet"]},
        {"name": "no spaces"},
        {"name": 3},
        {"datasets": []},
        {"datasets": ["brestmnist"]},
        {"datasets": "breastmnist"},
        {"datasets": [{"name": "breastmnist", "train_size": [5]}]},
        {"datasets": [{"size": 28}]},
        {"networks": ["resnet19"]},
        {"networks": ["timm/"]},
        {"arms": ["distrub"]},
        {"seeds": 0},
        {"seeds": []},
        {"seeds": [-1]},
        {"seeds": 1001},
        {"image_size": 4},
        {"denoiser": {"recipe": "large"}},
        {"denoiser": {"learning_rate": "fast"}},
        {"denoiser": {"unet": {"channels": [0]}}},
        {"guide": {"dropout": 1}},
        {"guide": None},
        {"sampling": {"batch_size": "most"}},
        {"synthetic": {"curve": {"ratios": []}}},
        {"setting": {"interval": [0, 1, 2]}},
        {"search": {"sampler": "cma"}},
        {"search": {"sampler": {"name": "TPESampler", "multivarate": True}}},
        {"search": {"sampler": {"name": "GPSampler", "n_startup_trials": True}}},
        {"search": {"pruner": {"percentile": 25.0}}},
        {"search": {"space": {"uncertainty_scale": {"low": 0.1}}}},
        {"judge": {"network": "resnet19"}},
        {"reference": ["clips"]},
        {"resources": {"train_workers": [1, 2, 3]}},
        {"tracking": {"url": "http://127.0.0.1"}},
    ],
)
def test_mistakes_are_refused_in_the_editor(change: dict[str, Any]) -> None:
    """Would catch a schema that lets everything pass: each is refused by pydantic as well."""
    study = {**TINY, **change}
    assert not accepted(study)
    with pytest.raises(ValidationError):
        StudyConfig.model_validate(study)


def test_a_required_key_is_required() -> None:
    for key in ("name", "datasets", "networks"):
        assert not accepted({k: v for k, v in TINY.items() if k != key})


def test_keys_are_explained_and_closed_lists_are_offered() -> None:
    """Would catch a completion without words, or without the names that it should offer."""
    assert (
        "Optimiser steps" in SCHEMA["$defs"]["DenoiserConfig"]["properties"]["steps"]["description"]
    )
    assert SCHEMA["$defs"]["Network"]["anyOf"][0]["enum"] == list(TORCHVISION)
    assert SCHEMA["properties"]["arms"]["items"]["enum"] == list(ARMS)
    assert SCHEMA["properties"]["reference"]["items"]["enum"] == list(REFERENCE_FAULTS)
    recipe = SCHEMA["$defs"]["DenoiserConfig"]["properties"]["recipe"]
    assert recipe["enum"] == list(RECIPES)


Place = tuple[str, ...]


def fields(model: type[BaseModel], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key of a study and its type, sections and leaves; of lists not what is in them."""
    for name, field in model.model_fields.items():
        yield (*place, name), field.annotation
        below = list(_models(field.annotation))
        if below and name not in ("datasets", "start", "per_measurement", "recipes"):
            yield from fields(below[0], (*place, name))


def named(annotation: Any) -> list[Any]:
    """The values that a type names one by one."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in named(part)]


PLACES = dict(fields(StudyConfig))
BOOLEANS: dict[Any, list[Any]] = {bool: [True, False, None], tuple[bool, ...]: [[True, False]]}
VALUES: list[Any] = [
    *(0, 1, 2, 3, 64, 1000, 10**7, -1, 0.0, 0.5, 1.0, 1.5, 600.5, None, {}, []),
    *("auto", "none", "mine", "hub", "", "resnet34", "timm/resnet10t", "timm/", "entropy", "a b"),
    *("http://127.0.0.1:5000", [1], [1, 2], [0, 999], [0.5, 2.0], [2, 1], [16, 32], [[1]]),
    *(["duplicate"], ["real"], ["resnet18", "swin_t"], ["alexnet"], ["entropy"], ["clip"]),
    *({"low": 0.1, "high": 0.2}, {"steps": 3}, {"network": "resnet34"}, {"train_size": [20]}),
    *({"trials": 2}, {"ratios": [0.25]}, {"margin": {"uncertainty_scale": {"low": 1, "high": 2}}}),
    "tpe",
    *({"name": "TPESampler", "multivariate": True}, {"name": "RandomSampler"}, "GPSampler"),
    ["breastmnist"],
    [{"measurement": "entropy", "uncertainty_scale": 0.1}],
    [{"name": "retinamnist", "train_size": [20, 30]}],
    [{"name": "own", "path": "own.npz", "task": "binary", "size": 32}, "phantom-fundus"],
]
GOOD = {
    **TINY,
    "guide": {**TINY["guide"], "dropout": 0.1},
    "judge": {"network": "resnet34"},
    "search": {**TINY["search"], "space": {"uncertainty_scale": {"low": 0.01, "high": 2}}},
    "synthetic": {"curve": {"ratios": [0.25]}},
}


def changed(changes: list[tuple[Place, Any]]) -> dict[str, Any]:
    """A good study with these values put in their places."""
    study = copy.deepcopy(GOOD)
    for place, value in changes:
        target: Any = study
        for part in place[:-1]:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        target[place[-1]] = copy.deepcopy(value)
    return study


def runs(study: dict[str, Any]) -> bool:
    try:
        StudyConfig.model_validate(study)
    except ValidationError:
        return False
    return True


# Of the kinds that pydantic turns into each other (true and 1, "3" and 3) a key gets its own.
CHANGES = [
    (place, value)
    for place, annotation in PLACES.items()
    for value in BOOLEANS.get(annotation, VALUES + named(annotation))
    if runs(changed([(place, value)]))
]


def test_every_value_that_a_key_may_have_is_accepted() -> None:
    """Would catch a schema that refuses in the editor what runs."""
    there = {place for place, _ in CHANGES}
    assert len(CHANGES) > 600
    # A key that no value of the list suits would go unnoticed.
    assert there == set(PLACES)
    for change in CHANGES:
        assert accepted(changed([change])), change


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(CHANGES), min_size=2, max_size=6))
def test_what_a_study_may_hold_the_schema_accepts(changes: list[tuple[Place, Any]]) -> None:
    """Would catch a key that the schema allows only beside, or without, another one."""
    study = changed(changes)
    event("runs" if runs(study) else "refused")
    if runs(study):
        VALIDATOR.validate(study)
