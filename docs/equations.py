"""A hook of mkdocs: equations become MathML, which a browser draws without a script or a font.

Pages write them as GitHub does, between dollars, so that they are equations there as well.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the page's HTML; raises PluginError where an equation is wrong."""
    where = page.file.src_uri
    content = DISPLAY.sub(lambda m: f"<p>{_mathml(m[1], 'block', where)}</p>", content)
    return INLINE.sub(lambda m: _mathml(m[1], "inline", where), content)


def _mathml(escaped: str, display: str, where: str) -> str:
    latex = html.unescape(escaped).strip()
    try:
        made = convert(latex, display=display)
    except Exception as error:  # the converter has a class of its own for each mistake
        raise PluginError(f"{where}: not an equation: {latex}: {error!r}") from error
    # What the converter does not know it shows as text, with its backslash.
    if "\\" in made or "&#x0005C;" in made:
        raise PluginError(f"{where}: the converter does not know a command in {latex}")
    return made
