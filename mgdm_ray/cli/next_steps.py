"""What to do after a study: chosen from its records, said in a line each."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mgdm_ray.config import ScaleRange, StudyConfig
from mgdm_ray.evaluation.stats import ALPHA, PRIMARY
from mgdm_ray.storage.records import Record

AT_CHANCE = 0.5
"""Share of the noise levels from which a guide at chance is named."""
NEAR = 0.02
"""A network within this of guessing has learnt nothing."""
EDGE = 0.05
"""A setting lies at the edge of a range within this share of it."""
FOR_ONE_RUN = ("--report-only", "--retry-failed", "--fail-fast")


class Step(NamedTuple):
    """A word to find it by, and what to do."""

    word: str
    text: str


def show(steps: Sequence[Step]) -> str:
    """The steps below each other, their texts aligned."""
    width = max((len(step.word) for step in steps), default=0) + 1
    return "\n".join(f"{step.word + ':':<{width}} {step.text}" for step in steps)


def run_again(records: Sequence[Record], planned: int, command: str) -> list[Step]:
    """Which command tries what failed once more, or runs what has not run."""
    failed = [record for record in records if record.status == "failed"]
    words = [word for word in shlex.split(command) if word not in FOR_ONE_RUN]
    again = shlex.join(words)
    steps = []
    if any(not record.is_transient for record in failed):
        steps.append(Step("retry", f"once the cause is mended: {again} --retry-failed"))
    elif failed:
        steps.append(Step("retry", f"the same command tries again: {again}"))
    if planned > len(records) and not steps:
        steps.append(Step("resume", again))
    return steps


def at_chance(records: Iterable[Record]) -> list[Step]:
    """What helps a guide or a judge that knows too little."""
    guides, judges = [], []
    for record in records:
        if guide_at_chance(record):
            guides.append(str(record.dataset))
        if judge_at_chance(record):
            judges.append(str(record.dataset))
    steps = []
    if guides:
        text = f"the guide of {', '.join(guides)} longer (guide.steps), or on more images"
        steps.append(Step("train", text))
    if judges:
        text = f"the judge of {', '.join(judges)} longer (judge.steps), or another judge.network"
        steps.append(Step("train", text))
    return steps


def guide_at_chance(record: Record) -> bool:
    share = record.metrics.get("share_of_t_at_chance", 0.0)
    return record.kind == "fit_guide" and share > AT_CHANCE


def judge_at_chance(record: Record) -> bool:
    accuracy = record.metrics.get("val_balanced_accuracy", 1.0)
    chance = record.metrics.get("val_chance_below", 0.0)
    return record.kind == "fit_judge" and accuracy <= chance


def networks_at_chance(records: Iterable[Record], chance: Mapping[str, float]) -> list[Step]:
    """Which networks learnt nothing from the real images, and so can show no difference.

    ``chance``: balanced accuracy of guessing by dataset, 1 / number of classes. Within NEAR of it
    over all seeds counts.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record.is_cell and record.arm == "real" and record.status == "done":
            where = str(record.dataset), str(record.network)
            found.setdefault(where, []).append(record.metrics["balanced_accuracy"])
    dead: dict[str, list[str]] = {}
    for (dataset, network), values in found.items():
        if sum(values) / len(values) <= chance.get(dataset, 0.0) + NEAR:
            dead.setdefault(network, []).append(dataset)
    if not dead:
        return []
    names = "; ".join(f"{network} ({', '.join(where)})" for network, where in dead.items())
    text = f"longer, or leave them out, for they guess even with real images: {names}"
    return [Step("train", f"networks {text} (downstream.steps)")]


def equal_trials(trials: Iterable[Record]) -> list[Step]:
    """Which searches chose among settings that all scored the same."""
    scores: dict[str, list[float]] = {}
    for trial in trials:
        if trial.kind == "trial" and "score" in trial.metrics:
            scores.setdefault(str(trial.dataset), []).append(trial.metrics["score"])
    same = [name for name, found in scores.items() if len(found) > 1 and len(set(found)) == 1]
    if not same:
        return []
    return [
        Step(
            "search",
            f"all trials of {', '.join(same)} scored the same, so that their setting was chosen by "
            "nothing: give search.networks that learn in search.steps",
        )
    ]


def at_the_edge(records: Iterable[Record], config: StudyConfig) -> list[Step]:
    """Which range of the search to widen: the chosen setting lies at its edge."""
    if config.search is None:
        return []
    space, found = config.search.space, dict[str, list[str]]()
    for record in records:
        if record.kind != "search" or record.status != "done":
            continue
        value = record.setting["uncertainty_scale"]
        measurement = record.setting["measurement"]
        strength = space.strength_of(measurement)
        if side := edge_of(strength, value):
            own = measurement in space.per_measurement
            key = f"per_measurement.{measurement}.uncertainty_scale" if own else "uncertainty_scale"
            end = f"search.space.{key}.{side}, now {getattr(strength, side):g}"
            found.setdefault(end, []).append(f"{record.dataset} chose {value:.3g}")
    return [Step("widen", f"{end}: {', '.join(chosen)}") for end, chosen in found.items()]


def edge_of(strength: ScaleRange, value: float) -> str:
    """``low`` or ``high`` where ``value`` lies at that end of the range; else empty."""
    axis: Callable[[float], float] = math.log if strength.log else float
    low, high = axis(strength.low), axis(strength.high)
    share = (axis(value) - low) / (high - low)
    return "low" if share < EDGE else "high" if share > 1 - EDGE else ""


def unresolved(
    numbers: Mapping[str, float], config: StudyConfig, seeds_for: Callable[[float], int | None]
) -> list[Step]:
    """What would resolve the first of the study's primary contrasts.

    ``numbers``: the report's headline; ``seeds_for``: how many seeds show a difference, None where
    no reasonable number does.
    """
    pairs = [f"{a}-{b}" for a, b in PRIMARY if {a, b} <= set(config.arms)]
    contrast = f"contrast/{pairs[0]}" if pairs else ""
    difference = numbers.get(f"{contrast}/difference")
    if difference is None:  # not asked, or planned cells are missing
        return []
    low, high = numbers.get(f"{contrast}/low"), numbers.get(f"{contrast}/high")
    told = low is not None and high is not None and not low <= 0 <= high
    if told and numbers.get(f"{contrast}/p_holm", 1.0) <= ALPHA:
        return []
    what = f"{pairs[0].replace('-', ' against ')}, {difference:+.3f}, is not resolvable"
    seeds = seeds_for(abs(difference))
    if seeds is None:
        way = "seeds alone will not do for so small a difference: more test images, or datasets"
    else:
        way = f"if it is as large as it looks, about {seeds} seeds show it (seeds, now "
        way += f"{len(config.seeds)}), or as many more networks"
    return [Step("resolve", f"{what}: {way}")]
