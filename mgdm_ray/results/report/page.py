"""The page: Jinja2 templates with autoescape, images as data URIs, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import math
import re

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from mgdm_ray.results.report import words

TEMPLATES = Environment(
    loader=PackageLoader("mgdm_ray.results.report"),
    autoescape=select_autoescape(["html"], default_for_string=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(counted=words.counted, duration=words.duration, signed=words.signed)
TEMPLATES.tests["nan"] = math.isnan
TEMPLATES.globals["words"] = words
PLAIN = TEMPLATES.overlay(trim_blocks=False)  # where a line ends, a word ends
LIMIT = 70_000  # bytes; some seventy pictures of a large study make five megabytes
ATTEMPTS = ((900, 88), (900, 75), (900, 60), (600, 60), (450, 45))
"""Largest side (a column of the page is half of the first) and JPEG quality; JPEG, for printing to
PDF keeps it as it is."""


def render(template: str, **values: object) -> Markup:
    """``templates/TEMPLATE.html`` with ``values``; what is not Markup is escaped."""
    return Markup(TEMPLATES.get_template(f"{template}.html").render(values))


def say(sentence: str, *values: object) -> str:
    """A macro of ``templates/sentences.j2`` as one line of plain text."""
    macro = getattr(PLAIN.get_template("sentences.j2").module, sentence)
    return re.sub(r"[ \n]+", " ", macro(*values)).strip(" ")


def data_uri(data: bytes) -> str:
    """Of a PNG or JPEG."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def light(data: bytes) -> bytes:
    """The PNG itself if it is small enough for the page, else the best JPEG that is."""
    if len(data) <= LIMIT:
        return data
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    smaller = data
    for side, quality in ATTEMPTS:
        scaled = picture.copy()
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        scaled.save(buffer, format="JPEG", quality=quality, optimize=True)
        smaller = buffer.getvalue()
        if len(smaller) <= LIMIT:
            break
    return min(data, smaller, key=len)
