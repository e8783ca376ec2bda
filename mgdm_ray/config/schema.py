"""The JSON Schema of a study file, for completion and checks in editors.

To update it: ``python -m mgdm_ray.config.schema > studies/study.schema.json``.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from mgdm_ray.config.base import MEDMNIST, PHANTOMS
from mgdm_ray.config.study import StudyConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Omits titles of fields, which repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def study_schema() -> dict[str, Any]:
    """The schema: accepts whatever ``load_study`` accepts, except numbers written as text.

    Rules between keys are left to ``load_study``.
    """
    schema = StudyConfig.model_json_schema(schema_generator=_Generator)
    _allow_short_datasets(schema, schema["$defs"]["DatasetConfig"])
    return {"$schema": DIALECT, "title": "mgdm-ray study", **schema}


def _allow_short_datasets(schema: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Allow the short forms of datasets: a name alone, a list of sizes."""
    known = {"enum": [*PHANTOMS, *MEDMNIST]}
    datasets = schema["properties"]["datasets"]
    datasets["items"] = {"anyOf": [known, datasets["items"]]}
    properties = dataset["properties"]
    name = properties["name"]
    own = {key: name.pop(key) for key in ("type", "pattern")}
    name["anyOf"] = [known, own]
    sizes = properties["train_size"]["anyOf"]
    [one] = [option for option in sizes if option.get("type") == "integer"]
    sizes.append({"type": "array", "items": one})


def as_text() -> str:
    """The schema as the file has it."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
