"""How the report writes numbers, durations, settings and jobs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mgdm_ray.evaluation.stats.intervals import Claim
from mgdm_ray.evaluation.stats.paired import Contrast
from mgdm_ray.storage.records import Record

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"


def decimal(value: float, digits: int = 3) -> str:
    return f"{value:z.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+z.{digits}f}".replace("-", MINUS)


def span(low: float, high: float, digits: int = 3) -> str:
    """``+0.010 to +0.020``; a dash where there is none."""
    return DASH if math.isnan(low) else f"{signed(low, digits)} to {signed(high, digits)}"


def interval_text(low: float, high: float, digits: int = 3) -> str:
    """With a no-break space before the percent sign."""
    found = f"95\N{NO-BREAK SPACE}% interval {span(low, high, digits)}"
    return "no interval" if math.isnan(low) else found


def scopes(c: Contrast, value: Callable[[Claim], str]) -> str:
    """``value`` of each interval of a contrast with where it holds, the known ones."""
    these = "on this dataset" if c.datasets == 1 else "on these datasets"
    pairs = ((c.here, these), (c.general, "in general"))
    return ", ".join(f"{value(t)} {where}" for t, where in pairs if t and t.estimate.is_known)


def intervals_text(c: Contrast) -> str:
    """``95 % interval −0.010 to +0.020 on these datasets, −0.030 to +0.040 in general``."""
    found = scopes(c, lambda t: span(t.estimate.low, t.estimate.high))
    return f"95\N{NO-BREAK SPACE}% interval {found}" if found else "no interval"


def p_values(c: Contrast) -> str:
    """``adjusted p = 0.012 on these datasets, p = 0.300 in general``; empty if none was tested."""
    found = scopes(c, lambda t: p_text(t.p))
    return f"adjusted {found}" if found else ""


def excluded(c: Contrast) -> str:
    """Largest differences that are left, ``0.011 on these datasets, 0.028 in general``."""
    return scopes(c, lambda t: decimal(t.bound))


def unbroken(text: str) -> str:
    """With no-break spaces in ``95 %`` and in a value of gamma."""
    return re.sub(rf"(?<=\d) (?=%)|(?<={GAMMA}) (?==)|(?<={GAMMA} =) ", "\N{NO-BREAK SPACE}", text)


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def p_text(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_of(names: Sequence[str], most: int) -> str:
    more = f"; and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def cell_title(cell: Sequence[object]) -> str:
    """``breastmnist × resnet18 × disturb, seed 0`` of (dataset, network, arm, seed)."""
    return f"{f' {TIMES} '.join(map(str, cell[:3]))}, seed {cell[3]}"


def job_title(record: Record) -> str:
    """``cell breastmnist × resnet18 × disturb, seed 0``."""
    kind = "cell" if record.is_cell else record.kind
    parts = [part for part in (record.dataset, record.network, record.arm) if part]
    seed = "" if record.seed is None else f", seed {record.seed}"
    return f"{kind} {f' {TIMES} '.join(parts)}{seed}".strip()


def setting_text(setting: Mapping[str, Any]) -> str:
    """``entropy, γ 0.12, guidance 1.5``; scales that are off are left out."""
    get = setting.get
    first, last = get("interval") or (0, 999)
    words = (
        get("measurement"),
        get("measurement") and f"{GAMMA} {get('uncertainty_scale', 0.0):.3g}",
        get("gradient", "normalised") != "normalised" and f"{get('gradient')} gradient",
        get("over_t", "constant") != "constant" and f"times {get('over_t')}",
        get("label_scale") and f"label {get('label_scale'):g}",
        (first, last) != (0, 999) and f"t {first} to {last}",
        get("guidance_scale") is not None and f"guidance {get('guidance_scale'):g}",
        get("classifier_scale") and f"classifier {get('classifier_scale'):g}",
        get("decode_guidance_scale", 1) != 1
        and f"guidance while decoding {get('decode_guidance_scale'):g}",
    )
    return ", ".join(str(word) for word in words if word)
