"""Which settings a search tries: its space, its start points, Optuna's samplers and pruners.

A suggestion depends on the search's seed, the trial's number and the earlier trials, not on a
sampler's memory: a search that was killed continues as if it had not been.
"""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial

from mgdm_ray.config import GuidanceControls, InputError
from mgdm_ray.pipeline.job import Job, search_seed
from mgdm_ray.pipeline.tasks.base import candidate_index
from mgdm_ray.seeding import content_key, derive_seed

STARTUP = 5
"""Trials drawn at random before TPE and GP model anything."""
HALVING = 2
"""ASHA keeps one in so many; a search has few networks, so that it must be small."""

Parameters = dict[str, Any]
"""Optuna's parameters of one trial, by name."""


def space(job: Job, num_classes: int) -> dict[str, BaseDistribution]:
    """The parameters of this search; a trial has the strength of its measurement only.

    For two classes the gradients of entropy, margin and least confidence have one direction (all
    fall with |p1 - p2|), and ``normalised`` and ``relative`` keep only the direction: only the
    first one is tried. ``raw`` and the sum with ``label_scale`` also keep lengths: there only
    ``margin`` and ``least_confidence`` are equal, at half the scale (p1 - p2 = 2 max p - 1).
    """
    inputs = job.inputs
    measurements = list(inputs["space"]["measurement"])
    if num_classes == 2:
        alike = [m for m in measurements if m in ("entropy", "margin", "least_confidence")]
        raw = inputs["space"]["gradient"] == "raw" or "measurement" in inputs.get("reference", ())
        if raw or inputs["space"]["label_scale"]:
            alike = [m for m in alike if m != "entropy"]
            alike.sort(key="least_confidence".__ne__)
        measurements = [m for m in measurements if m not in alike[1:]]
    found: dict[str, BaseDistribution] = {
        "stage_one": CategoricalDistribution(list(range(len(inputs["stage_one"])))),
        "measurement": CategoricalDistribution(measurements),
    }
    for measurement in measurements:
        own = inputs["space"]["per_measurement"].get(measurement, inputs["space"])
        scale = own["uncertainty_scale"]
        name = strength_name(job, measurement)
        found[name] = FloatDistribution(scale["low"], scale["high"], log=scale["log"])
    return found


def strength_name(job: Job, measurement: str) -> str:
    """Name of the parameter that is gamma in trials with this measurement."""
    own = measurement in job.inputs["space"]["per_measurement"]
    return f"uncertainty_scale/{measurement}" if own else "uncertainty_scale"


def draw(job: Job, within: Mapping[str, BaseDistribution], trial: Trial) -> None:
    """Give ``trial`` all its parameters."""
    _suggest(trial, "stage_one", within)
    measurement = _suggest(trial, "measurement", within)
    _suggest(trial, strength_name(job, measurement), within)


def _suggest(trial: Trial, name: str, within: Mapping[str, BaseDistribution]) -> Any:
    distribution = within[name]
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def setting_of(job: Job, chosen: Parameters) -> dict[str, Any]:
    """The guidance setting at a point of the space, as records hold it."""
    inputs, measurement = job.inputs, chosen["measurement"]
    guidance_scale, classifier_scale = inputs["stage_one"][chosen["stage_one"]]
    return {
        "guidance_scale": guidance_scale,
        "classifier_scale": classifier_scale,
        "measurement": measurement,
        "uncertainty_scale": chosen[strength_name(job, measurement)],
        **{name: inputs["space"][name] for name in GuidanceControls.model_fields},
    }


def fixed_points(job: Job, within: Mapping[str, BaseDistribution]) -> list[Parameters]:
    """Parameters of the first trials: the start points, and for ``grid`` all others too."""
    points = _start_points(job, within)
    if job.inputs["sampler"] == "grid":
        points += _grid(job, within, job.inputs["trials"] - len(points))
    return points


def _start_points(job: Job, within: Mapping[str, BaseDistribution]) -> list[Parameters]:
    tried = within["measurement"]
    assert isinstance(tried, CategoricalDistribution)
    return [
        {
            "stage_one": candidate_index(job.inputs["stage_one"], point),
            "measurement": point["measurement"],
            strength_name(job, point["measurement"]): point["uncertainty_scale"],
        }
        for point in job.inputs["start"]
        if point["measurement"] in tried.choices
    ]


def _grid(job: Job, within: Mapping[str, BaseDistribution], count: int) -> list[Parameters]:
    """``count`` points of the coarsest even grid that has as many, in random order.

    Optuna's GridSampler has no conditional parameters and stops the study itself.
    """
    stage_one, measurements = within["stage_one"], within["measurement"]
    assert isinstance(stage_one, CategoricalDistribution)
    assert isinstance(measurements, CategoricalDistribution)
    pairs = list(itertools.product(stage_one.choices, measurements.choices))
    levels = -(-count // len(pairs))
    points = []
    for candidate, measurement in pairs:
        name = strength_name(job, str(measurement))
        points += [
            {"stage_one": candidate, "measurement": measurement, name: value}
            for value in _levels(within[name], levels)
        ]
    random.Random(derive_seed("search", search_seed(job), "grid")).shuffle(points)
    return points[:count]


def _levels(distribution: BaseDistribution, count: int) -> list[float]:
    """The middles of ``count`` equal parts of the range."""
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    shares = [(index + 0.5) / count for index in range(count)]
    if distribution.log:
        return [low ** (1 - share) * high**share for share in shares]
    return [low + share * (high - low) for share in shares]


def sampler_of(job: Job, seed: int) -> BaseSampler:
    """Optuna's sampler of the search; ValueError for arguments that Optuna refuses."""
    given, trials = job.inputs["sampler"], job.inputs["trials"]
    if not isinstance(given, str):
        name, arguments = _class_of(given)
    else:
        # Ungrouped, TPE models only what all trials have in common.
        grouped = bool(job.inputs["space"]["per_measurement"])
        name, arguments = {
            "tpe": (
                "TPESampler",
                {"multivariate": True, "group": grouped, "n_startup_trials": STARTUP},
            ),
            "gp": ("GPSampler", {"n_startup_trials": STARTUP}),
            # Optuna's 50 are for thousands of trials: a search of 40 would never breed.
            "nsga2": ("NSGAIISampler", {"population_size": max(4, trials // 5)}),
            "random": ("RandomSampler", {}),
            "grid": ("RandomSampler", {}),  # never asked: all its trials are fixed points
        }[given]
    if name == "GPSampler":  # it cannot model ranges of a measurement's own and would say so
        arguments = {**arguments, "warn_independent_sampling": False}
    sampler: BaseSampler = _built(getattr(optuna.samplers, name), seed=seed, **arguments)
    return sampler


def pruner_of(job: Job) -> BasePruner:
    """Optuna's pruner of the search; ValueError for arguments that Optuna refuses."""
    given = job.inputs["pruner"]
    if isinstance(given, str):
        aliases: dict[str, type[BasePruner]]
        aliases = {"none": NopPruner, "median": MedianPruner, "asha": Asha}
        return aliases[given]()
    name, arguments = _class_of(given)
    pruner: BasePruner = _built(getattr(optuna.pruners, name), **arguments)
    return pruner


def _class_of(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return given["name"], {key: value for key, value in given.items() if key != "name"}


def _built(kind: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(**arguments)


def require_optuna_takes(jobs: Iterable[Job]) -> None:
    """Raise InputError for arguments of a sampler or pruner that Optuna refuses."""
    for job in jobs:
        if job.kind == "search":
            for key, build in (("sampler", partial(sampler_of, seed=0)), ("pruner", pruner_of)):
                try:
                    build(job)
                except (ValueError, TypeError) as error:
                    raise InputError(f"search.{key}: Optuna refuses it: {error}") from None


def propose(
    job: Job,
    within: Mapping[str, BaseDistribution],
    points: Sequence[Parameters],
    study: optuna.Study,
) -> FrozenTrial:
    """The study's next trial with all its parameters, RUNNING; the study is not changed.

    Drawn in a copy: NSGA-II and GPSampler write attributes into a study while they draw, which
    would change the next draw after a kill.
    """
    before = study.get_trials(deepcopy=False)
    number = len(before)
    # The start points may come from a search of the same seed, which would be drawn again.
    start = content_key(job.inputs["start"])
    seed = derive_seed("search", search_seed(job), start, number) % 2**32
    scratch = optuna.create_study(directions=study.directions, sampler=sampler_of(job, seed))
    for trial in before:
        plain = copy.copy(trial)
        plain.user_attrs = {}  # not read by samplers, slow to copy
        scratch.add_trial(plain)
    if number < len(points):
        scratch.enqueue_trial(points[number])
    new = scratch.ask()
    if number < len(points):
        _ = new.relative_params  # here NSGA-II counts a trial to its generation
    draw(job, within, new)
    return scratch.get_trials(deepcopy=False)[number]


class Asha(BasePruner):
    """Asynchronous successive halving over steps 1, 2, 4, ...: Optuna's rule without its memory.

    Optuna's pruner stores passed rungs in the trial, which would skip them when it runs again.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or not _is_power(step, HALVING):
            return False
        others = study.get_trials(deepcopy=False)
        scores = [
            t.intermediate_values[step]
            for t in others
            if t.number != trial.number and step in t.intermediate_values
        ]
        own = trial.intermediate_values[step]
        kept = max(1, (len(scores) + 1) // HALVING)
        return own < sorted([*scores, own], reverse=True)[kept - 1]


def _is_power(value: int, base: int) -> bool:
    while value % base == 0:
        value //= base
    return value == 1


def should_prune(study: optuna.Study, number: int, step: int) -> bool:
    """Whether the study's pruner stops this trial after ``step``.

    Later steps, left by a process that died, are ignored.
    """
    trial = copy.copy(study.get_trials(deepcopy=False)[number])
    values = trial.intermediate_values
    trial.intermediate_values = {s: value for s, value in values.items() if s <= step}
    return study.pruner.prune(study, trial)
