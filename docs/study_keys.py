"""Generate docs/keys.md from the models: ``python -m docs.study_keys --write``."""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mgdm_ray.config import ARMS, MEASUREMENTS, NETWORKS, StudyConfig
from mgdm_ray.config.optuna_classes import PRUNERS, SAMPLERS, SHORT_PRUNERS, SHORT_SAMPLERS

PAGE = Path(__file__).parent / "keys.md"
STUDIES = PAGE.parents[1] / "studies"
DRAFT = PAGE.parents[1] / "mgdm_ray" / "cli" / "study.yaml.j2"
HEAD = (
    "# Every key of the study file\n"
    "Only `name`, `datasets` and `networks` must be given. An unknown key, a key given twice or a "
    "value out of its range is refused before anything starts. `--set a.b=c` on the command line "
    "overrides one value; an entry of a list is named by its index (`datasets.0.size`). *Advanced* "
    "keys are set by no shipped study and not by `init`: their defaults suit most studies.\n\n"
    "This page is written by `python -m docs.study_keys --write` from the models in "
    "`mgdm_ray/config/`.\n\n"
    "**Arms**: {arms}. **Networks**: {networks}, any other classification model of torchvision, "
    "or `timm/NAME`. **Measurements**: {measurements}, or [your own](how-to/measurement.md).\n"
)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
NAMED = {"Network": "network", "MeasurementName": "measurement", "Name": "name"}
CHOICES = {
    "Sampler": f"{_listed(SHORT_SAMPLERS)}, or `{{name: CLASS, ...}}` of {_listed(SAMPLERS)}",
    "Pruner": f"{_listed(SHORT_PRUNERS)}, or `{{name: CLASS, ...}}` of {_listed(PRUNERS)}",
}
BOUNDS = {
    annotated_types.Gt: (">", "gt"),
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Lt: ("<", "lt"),
    annotated_types.Le: ("≤", "le"),
}


def page() -> str:
    """The whole page, as Markdown."""
    head = HEAD.format(
        arms=_listed(ARMS), networks=_listed(NETWORKS), measurements=_listed(MEASUREMENTS)
    )
    shown: dict[type[BaseModel], str] = {}
    parts = []
    for place, model in sections(StudyConfig, ""):
        parts.append(_again(place, shown[model]) if model in shown else _section(place, model))
        shown.setdefault(model, place)
    return "\n".join([head, *parts])


def sections(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and all below it, each with its place: ``search.space``."""
    yield place, model
    for name, field in model.model_fields.items():
        for below in models_in(field.annotation):
            many = "[]" if "tuple" in str(field.annotation) else ""
            many = ".NAME" if get_origin(field.annotation) is dict else many
            yield from sections(below, f"{place}.{name}{many}".lstrip("."))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _again(place: str, before: str) -> str:
    anchor = re.sub(r"[^\w-]", "", before)
    return f"## `{place}`\nThe same keys as [`{before}`](#{anchor}).\n"


def _section(place: str, model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    parts = [f"## `{place}`" if place else "## The study", _code(about), ""]
    for heading, wanted in ([], True), (["**Advanced**", ""], False):
        rows = [
            f"| `{name}` | {_type(model, name, field)} | {_default(field)} | {_meaning(field)} |"
            for name, field in model.model_fields.items()
            if (field.is_required() or (model, name) in _basic()) == wanted
        ]
        if rows:
            head = ["| key | values | default | |", "| --- | --- | --- | --- |"]
            parts += [*heading, *head, *rows, ""]
    return "\n".join(parts)


@cache
def _basic() -> frozenset[tuple[type[BaseModel], str]]:
    """Keys that a shipped study sets, or that the template of ``data init`` names."""
    found: set[tuple[type[BaseModel], str]] = set()
    for path in sorted(STUDIES.glob("*.yaml")):
        found |= set(_set_in(StudyConfig, yaml.safe_load(path.read_text(encoding="utf-8"))))
    drafted = set(re.findall(r"(\w+):", DRAFT.read_text(encoding="utf-8")))
    models = {model for _place, model in sections(StudyConfig, "")}
    return frozenset(found | {(m, name) for m in models for name in drafted & set(m.model_fields)})


def _set_in(model: type[BaseModel], value: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The keys below a value of the study file, each with its model."""
    if isinstance(value, list):
        for entry in value:
            yield from _set_in(model, entry)
    for name in set(value) & set(model.model_fields) if isinstance(value, dict) else ():
        yield model, name
        for below in models_in(model.model_fields[name].annotation):
            yield from _set_in(below, value[name])


def _meaning(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    for model in models_in(field.annotation):
        text = text or _first_sentence(model)
    return _code(text).replace("|", "&#124;")


def _first_sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."


def _code(text: str) -> str:
    """Replace the double backticks of docstrings."""
    return text.replace("``", "`")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "{}" if value == {} else str(value)


def _type(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    written = str(_written(model, name))
    words = CHOICES.get(written) or _words(field.annotation, field.metadata, written)
    return words.replace("|", "&#124;")


def _written(model: type[BaseModel], name: str) -> str:
    """The annotation as in the source, with the names of aliases."""
    for base in model.__mro__:
        if name in getattr(base, "__annotations__", {}):
            return str(base.__annotations__[name])
    raise KeyError(name)


def _words(annotation: Any, metadata: list[Any], written: str) -> str:
    """An annotation in words: the values allowed."""
    annotation = getattr(annotation, "__value__", annotation)  # of a named type
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], [*metadata, *annotation.__metadata__], written)
    if origin in (Union, types.UnionType):
        shown = [_words(a, metadata, written) for a in arguments if a is not type(None)]
        return " or ".join([*shown, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is dict:
        return "mapping by name"
    if origin is tuple:
        return _list(arguments, metadata, written)
    if models_in(annotation):
        return "mapping"
    alias = next((NAMED[n] for n in NAMED if re.search(rf"\b{n}\b", written)), None)
    if annotation is str and alias:
        return alias
    return f"{WORDS[annotation]}{_bounds(metadata)}"


def _list(arguments: tuple[Any, ...], metadata: list[Any], written: str) -> str:
    if arguments[-1] is not Ellipsis:
        return f"[{', '.join(_words(a, [], written) for a in arguments)}]"
    least = any(isinstance(m, annotated_types.MinLen) for m in metadata)
    one = _words(arguments[0], [], written)
    return f"list, not empty, of: {one}" if least else f"list of: {one}"


def _bounds(metadata: list[Any]) -> str:
    inner = [m for info in metadata if isinstance(info, FieldInfo) for m in info.metadata]
    shown = [
        f"{sign} {_yaml(getattr(bound, attribute))}"
        for bound in [*metadata, *inner]
        for kind, (sign, attribute) in BOUNDS.items()
        if isinstance(bound, kind)
    ]
    return f" {', '.join(shown)}" if shown else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.study_keys", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/keys.md")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
