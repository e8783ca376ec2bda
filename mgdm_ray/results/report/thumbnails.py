"""Images small enough for a page of a few megabytes; the files beside it keep full size."""

from __future__ import annotations

import io

from PIL import Image

LIMIT = 70_000  # bytes; some seventy pictures of a large study make five megabytes
LARGEST = 900  # pixels; a column of the page is half as wide
ATTEMPTS = ((LARGEST, 88), (LARGEST, 75), (LARGEST, 60), (600, 60), (450, 45))
"""Largest side and JPEG quality; JPEG, for printing to PDF keeps it as it is."""


def light(data: bytes) -> bytes:
    """The PNG itself if it is small enough, else the best JPEG that is."""
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
