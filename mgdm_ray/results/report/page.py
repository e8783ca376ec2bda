"""The page: Jinja2 templates with autoescape, images as data URIs, nothing from elsewhere."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mgdm_ray.results.report.words import counted, duration, signed

TEMPLATES = Environment(
    loader=PackageLoader("mgdm_ray.results.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(counted=counted, duration=duration, signed=signed)


def render(template: str, **values: object) -> Markup:
    """``templates/TEMPLATE.html`` with ``values``; what is not Markup is escaped."""
    return Markup(TEMPLATES.get_template(f"{template}.html").render(values))


def data_uri(data: bytes) -> str:
    """Of a PNG or JPEG."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
