"""Next steps after a study, from tables of records."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from mgdm_ray.cli.next_steps import (
    Step,
    at_chance,
    at_the_edge,
    edge_of,
    equal_trials,
    run_again,
    show,
    train_networks,
    unresolved,
)
from mgdm_ray.config import ScaleRange, StudyConfig
from mgdm_ray.evaluation.power_analysis import MOST_SEEDS, resolution, seeds_to_see
from mgdm_ray.results.report.artefacts import Judge
from mgdm_ray.storage.records import WORKER_DIED, Record
from tests.conftest import TINY

COMMAND = "python -m mgdm_ray.study 'my study.yaml' --storage runs"
DONE = Record("a", "fit_downstream", "done", dataset="d")
BROKEN = Record("b", "fit_downstream", "failed", "NonFiniteLoss: the loss is nan", "d")
DEAD = Record("c", "fit_downstream", "failed", f"{WORKER_DIED}: 3 times", "d")
REFUSED = Record("e", "fit_downstream", "refused", "limits.flips is 0.1", "d")


def study(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**TINY, **changes})


@pytest.mark.parametrize(
    ("records", "planned", "expected"),
    [
        ([DONE], 1, []),
        ([DONE, REFUSED], 2, []),
        ([DONE], 2, [("resume", COMMAND)]),
        ([DONE, DEAD], 2, [("retry", COMMAND)]),
        ([BROKEN], 1, [("retry", f"{COMMAND} --retry-failed")]),
        ([BROKEN, DEAD], 9, [("retry", f"{COMMAND} --retry-failed")]),
    ],
)
def test_the_command_fits_what_happened(
    records: list[Record], planned: int, expected: list[tuple[str, str]]
) -> None:
    """Would catch the plain command for a failure that it leaves as it is."""
    for command in (COMMAND, f"{COMMAND} --report-only --fail-fast --retry-failed"):
        steps = run_again(records, planned, command)
        found = [(step.word, step.text[step.text.index("python") :]) for step in steps]
        assert found == expected


def test_models_that_know_nothing_are_to_be_trained_longer() -> None:
    """Would catch advice for a model that is well, or none for one that is not."""
    guide = Record("g", "fit_guide", "done", dataset="d", metrics={"share_of_t_at_chance": 0.6})
    well = replace(guide, key="h", dataset="e", metrics={"share_of_t_at_chance": 0.5})
    judge = Judge("f", {"val_chance_below": 0.3, "val_balanced_accuracy": 0.3}, {})
    assert at_chance([well, DONE], [Judge("e", {"balanced_accuracy": 0.9}, {})]) == []
    again = replace(guide, key="l", seed=1)  # of another draw
    [one, two] = at_chance([guide, again, replace(guide, key="k", dataset="c"), well], [judge])
    assert re.search(r"\bof d, c\b.*\bguide\.steps\b", one.text)
    assert re.search(r"\bf\b.*\bjudge\.steps\b", two.text)


@pytest.mark.parametrize(
    ("low", "high", "log", "value", "side"),
    [
        (0.01, 1.0, True, 0.0100, "low"),
        (0.01, 1.0, True, 0.0125, "low"),  # log10 at 0.048 of the way
        (0.01, 1.0, True, 0.0130, ""),  # at 0.057
        (0.01, 1.0, True, 0.1, ""),
        (0.01, 1.0, True, 0.90, "high"),
        (0.0001, 1.0, False, 0.04, "low"),
        (0.0001, 1.0, False, 0.06, ""),
        (0.0001, 1.0, False, 0.94, ""),
        (0.0001, 1.0, False, 0.96, "high"),
    ],
)
def test_the_edge_is_that_of_the_searched_axis(
    low: float, high: float, log: bool, value: float, side: str
) -> None:
    """Would catch a linear distance on a logarithmic axis, where all small values are an edge."""
    assert edge_of(ScaleRange(low=low, high=high, log=log), value) == side


def test_the_range_to_widen_is_that_of_the_measurement() -> None:
    """Would catch advice on a range that the chosen setting was not drawn from."""
    space = {
        "measurement": ["entropy", "margin"],
        "uncertainty_scale": {"low": 0.02, "high": 0.5},
        "per_measurement": {"margin": {"uncertainty_scale": {"low": 1, "high": 9}}},
    }
    config = study(search={**TINY["search"], "space": space})
    setting = {"measurement": "entropy", "uncertainty_scale": 0.49}
    search = Record("s", "search", "done", dataset="d", setting=setting)
    own = replace(search, dataset="e", setting={"measurement": "margin", "uncertainty_scale": 1.0})
    inside = replace(search, setting={**setting, "uncertainty_scale": 0.1})
    assert at_the_edge([inside, DONE], config) == []
    assert at_the_edge([search], study(search=None)) == []
    assert at_the_edge([search], config, {"d"}) == []
    assert at_the_edge([search, replace(search, dataset="f"), own], config) == [
        Step("widen", "search.space.uncertainty_scale.high, now 0.5: d chose 0.49, f chose 0.49"),
        Step(
            "widen", "search.space.per_measurement.margin.uncertainty_scale.low, now 1: e chose 1"
        ),
    ]


def headline(**numbers: float) -> dict[str, float]:
    names = {
        "p_holm": "here/p_holm",
        "image_share": "here/image_share",
        "excluded": "here/excluded",
    }
    return {f"contrast/disturb-duplicate/{names.get(n, n)}": v for n, v in numbers.items()}


RESOLVED = headline(difference=0.05, p_holm=0.01)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (RESOLVED, False),
        ({}, False),
        (headline(difference=0.05, p_holm=0.2), True),
        (headline(difference=0.01, p_holm=0.2, excluded=0.03), False),
        (headline(difference=0.01, p_holm=0.2, excluded=0.05), True),
        (headline(difference=-0.05), True),
    ],
)
def test_only_what_is_not_resolved_asks_for_more(numbers: dict[str, float], said: bool) -> None:
    """Would catch advice where the answer is clear, or where cells are missing."""
    steps = unresolved(numbers, study(margin=0.04), lambda _: 7)
    assert [step.word for step in steps] == ["resolve"] * said
    assert all(" 7 seeds (seeds, now 1)" in step.text for step in steps)
    assert all("new study with another seed" in step.text for step in steps)
    shares = ((0.02, "more networks or"), (0.5, "more test images or"))
    for share, advice in shares if said else ():
        (step,) = unresolved({**numbers, **headline(image_share=share)}, study(), lambda _: None)
        assert advice in step.text


def test_seeds_that_would_do_agree_with_what_a_plan_says() -> None:
    """Would catch a number of seeds that the next plan contradicts."""
    tests = {"phantom-ultrasound": [100, 100]}
    now = study(seeds=2)
    assert seeds_to_see(0.001, now, tests, []) is None
    assert seeds_to_see(0.1, now, {}, []) is None
    seeds = seeds_to_see(0.055, now, tests, [])
    assert seeds is not None
    assert 2 < seeds < MOST_SEEDS
    shown = [resolution(study(seeds=n), tests, [])[1] for n in (seeds - 1, seeds)]
    sees = [float(line.rpartition(" ")[2]) for line in shown]
    assert sees[1] <= 0.055 < sees[0]


def test_steps_stand_below_each_other() -> None:
    steps = [Step("retry", "once"), Step("compare", "there")]
    assert show(steps) == "retry:   once\ncompare: there"


def cell(network: str, value: float, arm: str = "real", seed: int = 0) -> Record:
    name = f"{network}-{arm}-{seed}"
    return Record(
        name, "fit_downstream", "done", dataset="d", network=network, arm=arm, seed=seed,
        metrics={"balanced_accuracy": value},
    )  # fmt: skip


def test_networks_at_chance_in_every_arm_are_named() -> None:
    """Would catch a study whose networks guess, and whose answer is taken for one about images;
    and a network blamed that learnt from the added images."""
    arms = ["real", "disturb"]
    rows = [cell("dead", 0.5, arm, seed) for arm in arms for seed in (0, 1)]
    rows += [cell("saved", 0.5), cell("saved", 0.9, "disturb")]
    rows += [cell("alive", 0.5), cell("alive", 0.7, seed=1), cell("alive", 0.7, "disturb")]
    (step,) = train_networks(rows, {"d": 0.5}, arms)
    assert re.search(r"\bdead\b.*\bd\b", step.text)
    assert "alive" not in step.text
    assert "saved" not in step.text
    assert train_networks(rows, {"d": 0.2}, arms) == []


def trial(score: float | None, number: int) -> Record:
    metrics = {} if score is None else {"score": score}
    return Record(f"t{number}", "trial", "done", dataset="d", metrics=metrics)


@pytest.mark.parametrize(
    ("scores", "told"),
    [([0.5, 0.5, 0.5], True), ([0.5, 0.51], False), ([0.5], False), ([0.5, None, 0.5], True)],
)
def test_a_search_among_equals_is_told(scores: list[float | None], told: bool) -> None:
    """Would catch a "best" setting that was chosen among settings with one and the same score."""
    rows = [trial(score, number) for number, score in enumerate(scores)]
    assert bool(equal_trials(rows)) is told
