"""What to do after a study, a line each, from its records."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from mgdm_ray.config import ScaleRange, StudyConfig
from mgdm_ray.evaluation.chance import networks_at_chance
from mgdm_ray.evaluation.stats.intervals import ALPHA
from mgdm_ray.evaluation.stats.paired import PRIMARY
from mgdm_ray.results.report.artefacts import Judge, guide_at_chance
from mgdm_ray.storage.records import Record

EDGE = 0.05
"""A setting within this share of its range from an end lies at the edge."""
LIMITED_BY_IMAGES = 0.2
"""From this share of the variance on, more test images are advised."""
FOR_ONE_RUN = ("--report-only", "--retry-failed", "--fail-fast")


class Step(NamedTuple):
    """A word to find it by, and what to do."""

    word: str
    text: str


def show(steps: Sequence[Step]) -> str:
    """One line per step, the texts aligned."""
    width = max((len(step.word) for step in steps), default=0) + 1
    return "\n".join(f"{step.word + ':':<{width}} {step.text}" for step in steps)


def run_again(records: Sequence[Record], planned: int, command: str) -> list[Step]:
    """The command that retries failed jobs, or runs those that have not run."""
    failed = [record for record in records if record.status == "failed"]
    again = shlex.join(word for word in shlex.split(command) if word not in FOR_ONE_RUN)
    if any(not record.is_transient for record in failed):
        text = f"fix the cause, then rerun with --retry-failed: {again} --retry-failed"
        return [Step("retry", text)]
    if failed:
        return [Step("retry", f"temporary failure, rerun the same command: {again}")]
    return [Step("resume", again)] if planned > len(records) else []


def at_chance(records: Iterable[Record], judges: Iterable[Judge]) -> list[Step]:
    """What to change for guides and judges at chance level."""
    # Once, where each draw has a guide of its own.
    found = dict.fromkeys(str(record.dataset) for record in records if guide_at_chance(record))
    guides = ", ".join(found)
    weak = ", ".join(judge.dataset for judge in judges if judge.at_chance)
    more = f"guide of {guides} at chance: increase guide.steps, or use more images"
    other = f"judge of {weak} at chance: increase judge.steps, or choose another judge.network"
    return [Step("train", text) for names, text in ((guides, more), (weak, other)) if names]


def train_networks(
    records: Iterable[Record], chance: Mapping[str, float], arms: Collection[str]
) -> list[Step]:
    """Which networks are at chance in all ``arms``; ``chance`` is 1 / classes by dataset."""
    cells = {
        (str(r.dataset), str(r.network), str(r.arm), r.seed or 0): r.metrics["balanced_accuracy"]
        for r in records
        if r.is_cell and r.status == "done"
    }
    dead: dict[str, list[str]] = {}
    for dataset, network in networks_at_chance(cells, chance, arms):
        dead.setdefault(dataset, []).append(network)
    steps = []
    for dataset, names in dead.items():
        be, them = ("is", "it") if len(names) == 1 else ("are", "them")
        where = f"{', '.join(names)} {be} at chance on {dataset} even with real images"
        steps.append(Step("train", f"{where}: train longer (downstream.steps) or drop {them}"))
    return steps


def equal_trials(trials: Iterable[Record]) -> list[Step]:
    """Searches whose trials all have the same score."""
    scores: dict[str, list[float]] = {}
    for trial in trials:
        if trial.kind == "trial" and "score" in trial.metrics:
            scores.setdefault(str(trial.dataset), []).append(trial.metrics["score"])
    tied = [name for name, found in scores.items() if len(found) > 1 and len(set(found)) == 1]
    if not tied:
        return []
    advice = "use search.networks that learn within search.steps"
    text = f"all trials tied: the chosen setting is arbitrary ({', '.join(tied)}); {advice}"
    return [Step("search", text)]


def at_the_edge(
    records: Iterable[Record], config: StudyConfig, contradicted: Collection[str] = ()
) -> list[Step]:
    """Ranges of the search to widen: the chosen setting lies at their edge.

    ``contradicted``: datasets whose confirmation scores another setting higher.
    """
    if config.search is None:
        return []
    space, found = config.search.space, dict[str, list[str]]()
    for record in records:
        if record.kind != "search" or record.status != "done" or record.dataset in contradicted:
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
    """``low`` or ``high`` if ``value`` lies at that end of the range; else empty."""
    axis: Callable[[float], float] = math.log if strength.log else float
    low, high = axis(strength.low), axis(strength.high)
    share = (axis(value) - low) / (high - low)
    return "low" if share < EDGE else "high" if share > 1 - EDGE else ""


def unresolved(
    numbers: Mapping[str, float], config: StudyConfig, seeds_for: Callable[[float], int | None]
) -> list[Step]:
    """What would resolve the first of the study's primary contrasts.

    ``numbers``: the report's headline; ``seeds_for``: seeds that resolve a difference, None if no
    reasonable number does.
    """
    pairs = [(a, b) for a, b in PRIMARY if {a, b} <= set(config.arms)]
    if not pairs:
        return []
    a, b = pairs[0]
    start = f"contrast/{a}-{b}/"
    row = {name.removeprefix(start): n for name, n in numbers.items() if name.startswith(start)}
    if "difference" not in row:  # planned cells are missing
        return []
    within = row.get("here/excluded", math.inf) <= (config.margin or 0.0)
    if within or row.get("here/p_holm", 1.0) <= ALPHA:
        return []
    seeds = seeds_for(abs(row["difference"]))
    more = "test images" if row.get("here/image_share", 0) >= LIMITED_BY_IMAGES else "networks"
    # Networks of a seed share its draw, which more of them do not vary.
    networks = ", or as many more networks" if config.draws == "one" else ""
    advice = (
        f"the difference is too small to resolve by adding seeds; use more {more} or datasets"
        if seeds is None
        else f"a difference of this size needs about {seeds} seeds (seeds, now "
        f"{len(config.seeds)}){networks}; plan them as a new study with another "
        "seed: adding them to this one after a look makes false verdicts likelier"
    )
    shown = f"{row['difference']:+.3f}".replace("-", "\N{MINUS SIGN}")
    return [Step("resolve", f"{a} against {b} ({shown}) is not resolved: {advice}")]
