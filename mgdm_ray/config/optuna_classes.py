"""Optuna's samplers and pruners that a study may name, with their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from mgdm_ray.config.base import require_known

Classes = Mapping[str, Mapping[str, type]]
_GENETIC = {
    "population_size": int,
    "mutation_prob": float,
    "crossover_prob": float,
    "swapping_prob": float,
}
_EVERY = {"n_warmup_steps": int, "interval_steps": int}
_QUANTILE = {"n_startup_trials": int, "n_min_trials": int, **_EVERY}
SAMPLERS: Classes = {
    "TPESampler": {
        "multivariate": bool,
        "group": bool,
        "constant_liar": bool,
        "n_startup_trials": int,
        "n_ei_candidates": int,
        "prior_weight": float,
        "consider_magic_clip": bool,
        "consider_endpoints": bool,
    },
    "GPSampler": {"n_startup_trials": int, "deterministic_objective": bool},
    "NSGAIISampler": _GENETIC,
    "NSGAIIISampler": {**_GENETIC, "dividing_parameter": int},
    "RandomSampler": {},
}
"""Those that remember nothing but trials and know categories: not CMA-ES, QMC or brute force."""
PRUNERS: Classes = {
    "MedianPruner": _QUANTILE,
    "PercentilePruner": {"percentile": float, **_QUANTILE},
    "ThresholdPruner": {"lower": float, "upper": float, **_EVERY},
    "WilcoxonPruner": {"p_threshold": float, "n_startup_steps": int},
}
"""Those that write nothing into a trial: not SuccessiveHalvingPruner, whose rule is ``asha``."""
SHORT_SAMPLERS = ("tpe", "gp", "nsga2", "random", "grid")
SHORT_PRUNERS = ("none", "median", "asha")
JSON_TYPES = {bool: "boolean", int: "integer", float: "number"}


def _choice(what: str, short: tuple[str, ...], classes: Classes) -> tuple[Any, Any]:
    """Validator and JSON Schema of a key that takes a short name or ``{name: CLASS, ...}``."""

    def chosen(value: Any) -> str | dict[str, Any]:
        if not isinstance(value, Mapping):
            name = require_known(str(value), what, (*short, *classes))
            return name if name in short else {"name": name}
        name = require_known(str(value.get("name")), what, classes)
        found: dict[str, Any] = {"name": name}
        for key, given in value.items():
            if key == "name":
                continue
            kind = classes[name][require_known(str(key), "argument", classes[name])]
            if type(given) is not kind and not (kind is float and type(given) is int):
                raise ValueError(f"{name}.{key}: {JSON_TYPES[kind]} expected; got {given!r}")
            found[key] = float(given) if isinstance(given, int) and kind is float else given
        return found

    options: list[dict[str, Any]] = [{"enum": [*short, *classes]}]
    for name, arguments in classes.items():
        types = {key: {"type": JSON_TYPES[kind]} for key, kind in arguments.items()}
        options.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, **types},
                "required": ["name"],
                "additionalProperties": False,
            }
        )
    return PlainValidator(chosen), WithJsonSchema({"anyOf": options})


Sampler = Annotated[str | dict[str, Any], *_choice("sampler", SHORT_SAMPLERS, SAMPLERS)]
Pruner = Annotated[str | dict[str, Any], *_choice("pruner", SHORT_PRUNERS, PRUNERS)]
