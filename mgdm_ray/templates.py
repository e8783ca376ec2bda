"""Jinja2 environments that are alike: unknown names are errors, blocks leave no blank lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(module: str, **options: Any) -> Environment:
    """The templates beside ``module``, a ``__file__``."""
    return Environment(
        loader=FileSystemLoader(Path(module).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
