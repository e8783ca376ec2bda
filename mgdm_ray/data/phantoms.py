"""Draw medical-looking images by code: ultrasound, fundus, X-ray, dermatoscopy.

Each kind has the class-dependent signs that a reader of such images looks for. Image ``i`` of a
split depends on (kind, seed, split, i) and its label only; at another size it shows the same
patient. ``difficulty`` d acts twice: the signs move towards another class by a share drawn per
image, and they are fainter under stronger noise and confounders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import PhantomConfig
from mgdm_ray.data.apportion import apportion, interleave
from mgdm_ray.data.phantom_primitives import (
    Array,
    blob,
    cloud,
    edge,
    grid,
    outline,
    paint,
    polar,
    soft,
)
from mgdm_ray.seeding import derive_seed

PHANTOM_VERSION = "phantom:v1"
"""Identity of the phantoms' content: must change whenever a pixel does."""

# (random numbers, label, difficulty, size) -> `[size, size]` or `[size, size, 3]` in about [0, 1]
Painter = Callable[[np.random.Generator, int, float, int], Array]


def draw_split(
    name: str, config: PhantomConfig, size: int, split: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 `[N, size, size, C]` and labels int64 `[N]` of one split of phantom ``name``."""
    images, labels = _draw_split(name, config, size, split)
    return images.copy(), labels.copy()


@lru_cache(maxsize=6)  # an image takes a millisecond, and every cell reads all
def _draw_split(
    name: str, config: PhantomConfig, size: int, split: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    painter, num_classes = _PAINTERS[name]
    counts = class_counts(getattr(config, split), num_classes, config.imbalance)
    labels = interleave(counts, "phantom", name, config.seed, split)
    images = []
    for i, label in enumerate(labels):
        rng = np.random.default_rng(derive_seed("phantom", name, config.seed, split, i))
        image = painter(rng, int(label), config.difficulty, size)
        images.append(np.clip(np.rint(image * 255), 0, 255).astype(np.uint8))
    return np.stack(images).reshape(len(images), size, size, -1), labels


def class_counts(number: int, num_classes: int, imbalance: float) -> NDArray[np.int64]:
    """Images per class `[K]`, at least 2: falling geometrically, the first ``imbalance`` times the
    last."""
    return apportion(imbalance ** -np.linspace(0, 1, num_classes), number, minimum=2)


def _sign(rng: np.random.Generator, label: int, ambiguity: float) -> float:
    """Strength >= 0 of one sign of disease: about the label, 0 or 1; ``ambiguity`` moves it towards
    the other label and scatters it."""
    return max(0.0, abs(label - ambiguity) + rng.normal(0, 0.12 + 0.2 * ambiguity))


def _ultrasound(rng: np.random.Generator, label: int, d: float, size: int) -> Array:
    """Breast ultrasound: benign is smooth, wider than tall, sharp, bright behind; malignant is
    irregular and spiculated, taller than wide, blurred, with a shadow behind."""
    x, y = grid(size)
    ambiguity = d * rng.uniform(0, 0.78)
    shape, tall, blur, shadow = (_sign(rng, label, ambiguity) for _ in range(4))
    image = _breast_layers(rng, size)
    x0, y0 = rng.uniform(0.34, 0.66), rng.uniform(0.4, 0.56)
    aspect, radius = np.exp(0.34 - 0.5 * tall), rng.uniform(0.13, 0.2)
    distance, angle = polar(size, x0, y0, aspect, rng.normal(0, 0.2))
    limit = radius * outline(rng, angle, 0.03 + 0.09 * shape, 0.28 * shape)
    mass = soft(distance - limit, edge(size, 0.012 + 0.03 * blur))
    behind = soft(np.abs(x - x0) - 0.8 * radius * aspect**0.5, 0.04) * soft(y0 - y, 0.05)
    image += (0.2 - 0.42 * shadow) * (1 - 0.35 * d) * behind * (1 - mass)
    image += (1 - 0.3 * d) * mass * (0.12 + 0.03 * cloud(rng, size, 9) - image)
    image *= 1 - 0.25 * y  # attenuation
    # Speckle is multiplicative: the magnitude of a random field with independent normal parts,
    # here two looks averaged (4 parts: mean 1.88), wider than deep as from a linear probe.
    deep, wide = min(size, 72), min(size, 44)
    parts = [cloud(rng, size, deep, wide) ** 2 for _ in range(4)]
    speckle = np.sqrt(np.sum(parts, axis=0)) / 1.88
    image = np.clip(image, 0.02, 1) * (1 + (0.5 + 0.5 * d) * (speckle - 1))
    compressed: Array = np.clip(image, 0, 1) ** 0.85
    return compressed


def _breast_layers(rng: np.random.Generator, size: int) -> Array:
    """Skin, fat, fascia, gland and muscle, from top to bottom."""
    x, y = grid(size)
    depth = y + rng.normal(0, 0.02) * np.cos(np.pi * x + rng.uniform(0, 6))
    skin, fat, gland = rng.uniform(0.04, 0.07), rng.uniform(0.2, 0.3), rng.uniform(0.68, 0.8)
    image = 0.34 + 0.16 * soft(fat - depth, 0.03) - 0.2 * soft(gland - depth, 0.04)
    image += 0.45 * soft(depth - skin, edge(size, 0.01))
    image += 0.12 * np.exp(-(((depth - fat) / 0.02) ** 2))
    return image + 0.07 * cloud(rng, size, 14, 5) + 0.05 * cloud(rng, size, 6)


def _fundus(rng: np.random.Generator, label: int, d: float, size: int) -> Array:
    """Fundus photograph, grade 0 to 4: microaneurysms, then exudates and haemorrhages, then
    cotton-wool spots, then large bleeding."""
    x, y = grid(size)
    side = 1.0 if rng.random() < 0.5 else -1.0  # right or left eye
    u, v = (x - 0.5) * side, y - 0.5
    brightness, hue = rng.uniform(0.75, 1.05), rng.normal(0, 0.03)
    light = brightness * (1 - 0.9 * ((u - rng.normal(0, 0.1)) ** 2 + v**2))
    light += 0.03 * cloud(rng, size, 5)
    image = light[..., None] * np.array([0.82 + hue, 0.42 - hue, 0.2])
    disc_u, disc_v = 0.27 + rng.normal(0, 0.02), rng.normal(0, 0.03)
    image = paint(image, 0.55 * blob(u, v, disc_u - 0.36, disc_v, 0.07), (0.45, 0.17, 0.09))
    image = paint(image, 0.75 * _vessels(rng, disc_u - u, v - disc_v), (0.45, 0.1, 0.07))
    disc = soft(np.hypot(u - disc_u, v - disc_v) - 0.075, edge(size, 0.015))
    image = paint(image, 0.85 * disc, (1.0, 0.86, 0.55))
    grade = max(0.0, label + rng.normal(0, 0.1 + 0.8 * d))
    image = _retinopathy(rng, image, (u, v), grade, 1 - 0.45 * d)
    image += (0.015 + 0.05 * d) * rng.standard_normal((size, size, 3))
    image += 0.06 * d * cloud(rng, size, 4)[..., None]  # uneven light
    aperture = soft(np.hypot(x - 0.5, y - 0.5) - 0.49, edge(size))
    return image * aperture[..., None]


def _vessels(rng: np.random.Generator, away: Array, v: Array) -> Array:
    """Share of vessel at each pixel; ``away`` and ``v`` are coordinates from the disc, ``away``
    towards the macula. Arcades are parabolas F = w^2 - reach^2 away = 0, and the distance to a
    curve F = 0 is about |F| / |grad F|."""
    size = len(v)
    share = np.zeros_like(v)
    w = v - 0.012 * np.sin(away * rng.uniform(14, 22) + rng.uniform(0, 6))
    for sign in (-1.0, 1.0):
        for reach, width in ((rng.uniform(0.5, 0.62), 0.014), (rng.uniform(0.2, 0.34), 0.008)):
            distance = np.abs(w**2 - reach**2 * away) / np.sqrt(4 * w**2 + reach**4)
            line = soft(distance - width, edge(size, 0.006)) * min(1, 2 * width * size)
            share = np.maximum(share, line * ((sign * w > 0) & (away > 0)))
        slope = sign * rng.uniform(0.7, 1.6)
        distance = np.abs(v + slope * away) / np.hypot(1, slope)  # a nasal branch
        share = np.maximum(share, 0.6 * soft(distance - 0.007, edge(size)) * (away < 0))
    return share


# Lesion, first grade that shows it, mean number per grade above, radius from, to, opacity, colour.
_RETINOPATHY = (
    ("microaneurysm", 0.0, 3.5, 0.009, 0.009, 0.8, (0.40, 0.04, 0.05)),
    ("hard exudate", 1.0, 3.0, 0.013, 0.013, 1.0, (1.00, 0.90, 0.45)),
    ("blot haemorrhage", 1.5, 2.5, 0.020, 0.040, 0.9, (0.30, 0.02, 0.03)),
    ("cotton-wool spot", 2.2, 1.5, 0.040, 0.040, 0.7, (0.95, 0.85, 0.70)),
    ("preretinal bleeding", 3.2, 1.8, 0.060, 0.090, 0.9, (0.25, 0.01, 0.02)),
)


def _retinopathy(
    rng: np.random.Generator,
    image: Array,
    place: tuple[Array, Array],
    grade: float,
    contrast: float,
) -> Array:
    """Lesions in number and kind by ``grade``, a real number: neighbouring grades overlap."""
    for _, first, number, low, high, opacity, colour in _RETINOPATHY:
        for _ in range(rng.poisson(number * max(grade - first, 0.0))):
            turn, out = rng.uniform(0, 2 * np.pi), 0.4 * np.sqrt(rng.random())
            spot = blob(*place, out * np.cos(turn), out * np.sin(turn), rng.uniform(low, high))
            image = paint(image, contrast * opacity * spot, colour)
    return image


def _xray(rng: np.random.Generator, label: int, d: float, size: int) -> Array:
    """Chest X-ray: dark lungs beside a bright spine and heart, ribs, collar bones, diaphragm;
    ``opacity`` adds soft, ragged patches within the lungs."""
    x, y = grid(size)
    cx, scale = 0.5 + rng.normal(0, 0.015), rng.uniform(0.94, 1.06)
    trunk = soft((np.abs(x - cx) / 0.52) ** 4 + (np.abs(y - 0.85) / 0.76) ** 3 - 1, 0.12)
    neck = soft(np.abs(x - cx) - 0.12, 0.03)
    body = np.maximum(trunk, neck)
    image = 0.05 + 0.5 * body + 0.03 * cloud(rng, size, 4)
    lungs = _lungs(x, y, cx, scale)
    image -= (0.36 + rng.normal(0, 0.03)) * lungs
    away = np.abs(x - cx)
    arch = y + 3.2 * (away - 0.2) ** 2 + rng.normal(0.1, 0.1) * away
    ribs = np.clip(np.cos(2 * np.pi * (arch * rng.uniform(8.5, 10) + rng.random())), -0.2, 1)
    image += 0.07 * ribs * trunk * (0.25 + 0.75 * lungs)
    image += 0.13 * soft(away - 0.05, 0.03) * body  # spine
    for side in (-1.0, 1.0):  # hila
        image += rng.uniform(0.06, 0.12) * blob(x, y, cx + side * 0.1, 0.46, 0.045)
    collar = np.abs(y - 0.2 + 0.22 * (away - 0.12)) - 0.013
    image += 0.1 * soft(collar, edge(size, 0.012)) * soft(np.abs(away - 0.2) - 0.16, 0.03)
    haze = d * rng.uniform(0, 0.08) + 0.04 * d * cloud(rng, size, 4)  # confounds
    image += lungs * (haze + 0.03 * cloud(rng, size, 12))
    # Filled airspace is as bright as soft tissue, not brighter, and hides the ribs.
    image += lungs * _opacity(rng, label, d, size, cx) * (0.6 - image)
    distance, _ = polar(size, cx + 0.06, 0.62, 0.95, 0.5)
    heart = soft(distance - 0.15 * scale * rng.uniform(0.92, 1.1), 0.025)
    image += 0.75 * heart * (0.64 - image)
    image = 0.5 + (image - 0.5) * rng.uniform(0.9, 1.15) + rng.normal(0, 0.02 + 0.03 * d)
    return image + (0.012 + 0.045 * d) * rng.standard_normal((size, size))


def _lungs(x: Array, y: Array, cx: float, scale: float) -> Array:
    """Both lungs, 1 inside: pointed above, cut below by the dome of the diaphragm."""
    lungs = np.zeros_like(x)
    for side in (-1.0, 1.0):
        height = np.clip((y - 0.12) / 0.62, 0, 1)  # 0 at the apex, 1 at the base
        middle = cx + side * scale * (0.17 + 0.05 * height)
        half = scale * (0.06 + 0.115 * np.sqrt(height))
        walls = soft(np.abs(x - middle) - half, 0.022)
        dome = 0.75 + 0.02 * side + 3.0 * (x - cx - side * 0.19) ** 2
        lungs = np.maximum(lungs, walls * soft(y - dome, 0.02) * soft(0.13 - y, 0.03))
    return lungs


def _opacity(rng: np.random.Generator, label: int, d: float, size: int, cx: float) -> Array:
    """Share of filled airspace at each pixel: ragged patches by label."""
    x, y = grid(size)
    strength = _sign(rng, label, d * rng.uniform(0, 0.7)) * (1.0 - 0.2 * d)
    patches = np.zeros_like(x)
    for _ in range(rng.integers(2, 5)):
        side = 1.0 if rng.random() < 0.5 else -1.0
        x0, y0 = cx + side * rng.uniform(0.15, 0.28), rng.uniform(0.3, 0.7)
        patches = np.maximum(patches, blob(x, y, x0, y0, rng.uniform(0.06, 0.13)))
    ragged = np.clip(1 + 0.35 * cloud(rng, size, 10), 0.2, 1.8)
    return np.clip(strength * patches * ragged, 0, 0.9)


# Rows: nevus, melanoma, keratosis, vascular. Columns: colour (3) and dark colour (3) of the
# lesion, roughness of its outline, blur of its border, pigment network, mottling, blue-grey veil,
# bright cysts, red lakes, radius.
_DERM_SIGNS = np.array(
    [
        [0.56, 0.36, 0.26, 0.36, 0.21, 0.16, 0.03, 0.030, 0.9, 0.25, 0.0, 0.0, 0.0, 0.19],
        [0.40, 0.25, 0.22, 0.15, 0.10, 0.12, 0.11, 0.030, 0.5, 0.80, 1.0, 0.1, 0.0, 0.25],
        [0.60, 0.45, 0.34, 0.45, 0.32, 0.24, 0.06, 0.008, 0.0, 0.45, 0.0, 1.0, 0.0, 0.23],
        [0.66, 0.22, 0.26, 0.42, 0.08, 0.16, 0.05, 0.012, 0.0, 0.30, 0.0, 0.0, 1.0, 0.16],
    ]
)


def _dermatoscopy(rng: np.random.Generator, label: int, d: float, size: int) -> Array:
    """Dermatoscopy: nevus (round, even, network), melanoma (uneven, several colours, veil),
    keratosis (sharp, waxy, cysts), vascular (red lakes); skin, hairs and vignette for all."""
    x, y = grid(size)
    signs = _borrowed_signs(rng, label, d)
    main = signs[:3] + rng.normal(0, 0.015 + 0.03 * d, 3) + rng.normal(0, 0.02 + 0.06 * d)
    dark = np.minimum(signs[3:6], main)
    rough, blur, network, mottle, veil, cysts, lakes, radius = signs[6:]
    skin = np.array([0.86, 0.66, 0.56]) + rng.normal(0, 0.03, 3) + rng.normal(0, 0.03)
    image = skin + 0.02 * cloud(rng, size, 6)[..., None]
    x0, y0 = rng.normal(0.5, 0.04, 2)
    radius *= rng.uniform(0.8, 1.2)
    distance, angle = polar(size, x0, y0, np.exp(rng.normal(0, 0.12)), rng.uniform(0, np.pi))
    limit = radius * outline(rng, angle, rough, 0.6 * max(rough - 0.06, 0))
    lesion = soft(distance - limit, edge(size, blur))
    image = paint(image, lesion, main)
    image = paint(image, mottle * lesion * soft(0.5 - cloud(rng, size, 7), 0.4), dark)
    image = paint(image, 0.35 * network * lesion * _network(rng, size), dark)
    turn = rng.uniform(0, 2 * np.pi)
    vx, vy = x0 + 0.5 * radius * np.cos(turn), y0 + 0.5 * radius * np.sin(turn)
    image = paint(image, 0.75 * veil * lesion * blob(x, y, vx, vy, 0.08), (0.36, 0.40, 0.50))
    for strength, dot, colour in (
        (cysts, 0.016, (0.95, 0.88, 0.72)),
        (lakes, 0.040, (0.62, 0.05, 0.14)),
    ):
        for _ in range(7):
            spot = blob(x, y, rng.normal(x0, 0.5 * radius), rng.normal(y0, 0.5 * radius), dot)
            image = paint(image, 0.8 * strength * lesion * spot, colour)
    image = _hairs(rng, image, rng.poisson(0.5 + 2 * d))
    image *= (1 - rng.uniform(0.4, 1.0) * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    return image + (0.01 + 0.04 * d) * rng.standard_normal((size, size, 3))


def _borrowed_signs(rng: np.random.Generator, label: int, d: float) -> Array:
    """A row of signs, part of each borrowed from another class, the colours all alike."""
    other = (label + int(rng.integers(1, len(_DERM_SIGNS)))) % len(_DERM_SIGNS)
    share: Array = d * (rng.uniform(0, 0.9) + rng.normal(0, 0.22, len(_DERM_SIGNS[0])))
    share[:6] = share[0]
    share = share.clip(0, 1)
    signs: Array = (1 - share) * _DERM_SIGNS[label] + share * _DERM_SIGNS[other]
    return signs


def _network(rng: np.random.Generator, size: int) -> Array:
    """Lines of a pigment network: a bent grid."""
    x, y = grid(size)
    turn, pitch = rng.uniform(0, np.pi), 2 * np.pi * rng.uniform(14, 18)
    u = x * np.cos(turn) + y * np.sin(turn) + 0.012 * cloud(rng, size, 9)
    v = y * np.cos(turn) - x * np.sin(turn) + 0.012 * cloud(rng, size, 9)
    lines: Array = np.clip(np.maximum(np.cos(pitch * u), np.cos(pitch * v)), 0, 1)
    return lines


def _hairs(rng: np.random.Generator, image: Array, number: int) -> Array:
    size = len(image)
    x, y = grid(size)
    for _ in range(number):
        turn, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4), rng.normal(0, 0.5)
        along = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
        across = (y - 0.5) * np.cos(turn) - (x - 0.5) * np.sin(turn) - offset - bend * along**2
        line = soft(np.abs(across) - 0.005, edge(size))
        image = paint(image, 0.8 * min(1.0, 0.012 * size) * line, (0.16, 0.1, 0.08))
    return image


_PAINTERS: dict[str, tuple[Painter, int]] = {
    "phantom-ultrasound": (_ultrasound, 2),
    "phantom-fundus": (_fundus, 5),
    "phantom-xray": (_xray, 2),
    "phantom-dermatoscopy": (_dermatoscopy, 4),
}
