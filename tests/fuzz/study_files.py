"""Study files and overrides: a grammar of nearly right ones, broken as trees and as text."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mgdm_ray.classifiers.weights import weights_fingerprints
from mgdm_ray.config import MAX_STUDY_BYTES, StudyConfig, load_study
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.warm_start import warm_points
from tests.conftest import TINY

LARGEST_PLAN = 300
"""Cells; larger plans are right, and only take time."""
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**4000, -(10**400), 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", " ", "0", "null", "nan", "~", "~nobody", "..", "../..", "/",
    "/etc/passwd", "../../outside/secret", "a" * 5000, "a/" * 3000, "x" * 200_000, "\0", "a\nb",
    "name\u202egnp.exe", "é", "e\u0301", "💥", "\ud7ff", "²", "٣", "%s%n", "{0.__class__}",
    "$(touch x)", "`id`", "'; DROP TABLE trials; --", "<script>alert(1)</script>",
    [], {}, [None], [[]], [[[[[]]]]], {"a": {"a": {}}}, [1] * 1000, {"": ""},
    ["phantom-ultrasound"] * 3, {"name": "phantom-fundus"}, b"bytes",
)  # fmt: skip
TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{canary}']]",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!binary aGk=",
    "!!set {{a, b}}",
    "!!omap [a: 1, a: 2]",
    "!!timestamp 2024-13-45",
    "!!float x",
    "!!int 0x" + "f" * 5000,
    "!unknown x",
    "!!int 1:" * 50 + "1",
    "!!map [a]",
    "!!str {{a: b}}",
)
ROOT_KEYS = (*StudyConfig.model_fields, "nmae", "", "__class__", "model_config")


def case(rng: random.Random, folder: Path, canary: Path) -> bool:
    path = folder / "study.yaml"
    path.write_bytes(_text(rng, canary))
    return _read(path, (), folder)


def override_case(rng: random.Random, folder: Path, canary: Path) -> bool:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    return _read(path, [_override(rng, canary) for _ in range(rng.randint(1, 3))], folder)


def _read(path: Path, overrides: Any, folder: Path) -> bool:
    """All that a study does before it starts anything."""
    config = load_study(path, overrides)
    data_dir = config.data_dir
    if data_dir and "://" in data_dir:
        return True  # would ask a network
    contents = {
        d.name: data_source(d, data_dir or str(folder)).fingerprint() for d in config.datasets
    }
    contents |= weights_fingerprints(config)
    points = warm_points(config, folder)
    searched = config.search.networks if config.search else ()
    networks = len(config.networks) + len(searched)
    cells = len(config.datasets) * networks * len(config.arms) * len(config.seeds)
    curve = config.synthetic.curve
    if cells * (1 + len(curve.ratios if curve else ())) <= LARGEST_PLAN:
        make_plan(config, contents, points)
    return True


def _text(rng: random.Random, canary: Path) -> bytes:
    kind = rng.random()
    if kind < 0.08:
        return _bomb(rng).encode()
    tree = copy.deepcopy(TINY)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        _break_tree(rng, tree)
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError):  # Python prints no number of so many digits
        text = yaml.safe_dump(TINY)
    if kind < 0.25:
        line = rng.choice(text.splitlines())
        text = text.replace(line, f"{line.partition(':')[0]}: {_tagged(rng, canary)}", 1)
    data = text.encode("utf-8", "surrogatepass")
    return _break_bytes(rng, data) if kind > 0.6 else data


def _tagged(rng: random.Random, canary: Path) -> str:
    return rng.choice(TAGS).format(canary=canary)


def _bomb(rng: random.Random) -> str:
    """Few bytes that stand for much: aliases of aliases, cycles, depth, one long scalar."""
    levels, wide = rng.randint(2, 40), rng.randint(2, 12)
    refs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, levels)]
    merges = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return rng.choice(
        (
            "a0: &a0 [x, x]\n" + "\n".join(refs) + f"\nname: *a{levels - 1}\n",
            "a0: &a0 {x: 1}\n" + "\n".join(merges) + f"\ndenoiser: *a{levels - 1}\n",
            "name: &a [*a]\n",
            "datasets: &a {name: *a}\n",
            "&a ? *a : b\n",
            "name: " + "[" * levels * 50 + "]" * levels * 50,
            "name: " + "{a: " * levels * 20 + "}" * levels * 20,
            "- " * levels * 100,
            "name: " + "x" * rng.choice((10**5, MAX_STUDY_BYTES - 10, MAX_STUDY_BYTES + 10)),
            "\n".join(f"k{i}: {i}" for i in range(rng.choice((100, 5000)))),
            "networks: [" + "alexnet, " * rng.choice((10, 5000)) + "]",
        )
    )


def _break_tree(rng: random.Random, tree: dict[str, Any]) -> None:
    """Change, remove, double or add one node, somewhere."""
    parent, key = rng.choice(list(_places(tree)))
    what = rng.random()
    if what < 0.6:
        parent[key] = copy.deepcopy(rng.choice(STRANGE))
    elif what < 0.7:
        del parent[key]
    elif what < 0.8 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif isinstance(parent, dict):
        parent[rng.choice(ROOT_KEYS)] = copy.deepcopy(rng.choice(STRANGE))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _break_bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    new = bytes(rng.choice(b"\0\t\n:-[]{}&*!|>'\"%@`#,?\x7f\x80\xff\xfeA9") for _ in range(3))
    return rng.choice(
        (
            data[:at],
            data[:at] + new + data[at:],
            data[:at] + data[at + rng.randint(1, 40) :],
            data[:at] + new + data[at + 3 :],
            data + data[at:],
            b"\xef\xbb\xbf" + data,
            data.decode("utf-8", "replace").encode("utf-16"),
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        )
    )


def _override(rng: random.Random, canary: Path) -> str:
    parts = [
        rng.choice((*ROOT_KEYS, "0", "1", "²", "-1", "99999999", "9" * 5000, "a" * 100, " ", "\0"))
        for _ in range(rng.randint(1, 4))
    ]
    if rng.random() < 0.5:
        parent, key = rng.choice(list(_places(TINY)))
        parts = [str(key)] if parent is TINY else [rng.choice(list(TINY)), str(key)]
    value = rng.choice((*map(str, STRANGE[:8] + STRANGE[10:]), _tagged(rng, canary), _bomb(rng)))
    return ".".join(parts) + rng.choice(("=", "=", "=", "", " = ", "==")) + value
