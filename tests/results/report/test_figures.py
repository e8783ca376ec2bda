"""What is drawn: positions, numbers and marks, read from the axes."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mgdm_ray.evaluation.stats.intervals import Interval, claims
from mgdm_ray.evaluation.stats.paired import Contrast, Summary
from mgdm_ray.results.report.figures import base, models, outcomes, searches
from mgdm_ray.results.report.figures.base import png
from mgdm_ray.results.report.figures.searches import gamma_edges
from mgdm_ray.results.report.words import MINUS


def trial(gamma: float, score: float, measurement: str = "entropy", where: str = "d") -> dict:
    return {"where": where, "measurement": measurement, "gamma": gamma, "guidance": 1.0,
            "score": score, "chosen": False}  # fmt: skip


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


def test_heat_map_by_hand() -> None:
    """Two trials in the first bin (0.4, 0.6), one in the last (0.8), mean 0.6: -0.1 and +0.2.

    Catches bins on a linear scale, a sign turned round, a lost trial at the upper end, an empty
    bin that reads as zero, and a chosen setting that is not framed.
    """
    rows = [trial(0.01, 0.4), trial(0.011, 0.6), {**trial(0.64, 0.8), "chosen": True}]
    figure = searches.heat_map(pd.DataFrame(rows))
    assert texts(figure) == [f"{MINUS}0.100\nn = 2", "+0.200\nn = 1"]
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    hatched = [int(p.get_x()) for p in boxes if p.get_hatch()]
    framed = [int(p.get_x()) for p in boxes if not p.get_hatch()]
    assert hatched == [1, 2, 3, 4]
    assert framed == [5]
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)]
    assert mesh.get_zorder() < min(box.get_zorder() for box in boxes)  # else it hides them
    assert gamma_edges(0.01, 0.64) == pytest.approx([0.01 * 2**i for i in range(7)])
    assert gamma_edges(0.1, 0.1)[0] < 0.1 < gamma_edges(0.1, 0.1)[-1]


def test_heat_map_has_a_panel_per_measurement_and_searches_from_top_to_bottom() -> None:
    """Catches trials of one measurement in the other's panel, and rows against their labels: two
    panels share an axis, which is easily turned over twice."""
    rows = [trial(0.1, 0.5, where="a"), trial(0.9, 0.7, "margin", "a"), trial(0.1, 0.2, where="b")]
    figure = searches.heat_map(pd.DataFrame(rows))
    found = panels(figure)
    assert {"entropy", "margin"} <= set(found)
    entropy, margin = found["entropy"], found["margin"]
    assert entropy.get_ylim() == margin.get_ylim() == (2, 0)
    assert [t.get_text() for t in entropy.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in margin.texts] == ["+0.100\nn = 1"]
    assert [t.get_position()[1] for t in entropy.texts] == [0.5, 1.5]


def test_network_gains_are_drawn_at_their_numbers() -> None:
    """Catches an interval or diamond in another network's row, and 0 excluded but drawn faint."""
    clear = Contrast(0.05, 3, 0, 0, 1.0, 3, here=claims([Interval(0.05, 0.01, 9)])[0])
    faint = Contrast(-0.01, 1, 0, 2, -0.1, 3, here=claims([Interval(-0.01, 0.01, 9)])[0])
    pair = {"resnet18": clear, "alexnet": faint}
    points = {name: {"d": [0.0, 0.1]} for name in pair}
    axes = outcomes.network_gains({"a - b": pair}, {"a - b": points}).axes[0]
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    labels = [label.get_text() for label in axes.get_yticklabels()]
    rows = dict(zip(labels, axes.get_yticks(), strict=True))
    assert rows["alexnet"] > rows["resnet18"]  # alphabetical from the top
    for name, contrast in pair.items():
        assert contrast.here is not None
        one = contrast.here.estimate
        assert list(lines[f"interval {name}"].get_xdata()) == [one.low, one.high]
        assert lines[f"mean {name}"].get_xdata()[0] == contrast.difference
        assert set(lines[f"interval {name}"].get_ydata()) == {rows[name]}
    dark, light = (lines[f"interval {n}"].get_color() for n in ("resnet18", "alexnet"))
    assert sum(to_rgb(dark)) < sum(to_rgb(light))


def test_the_forest_has_two_labelled_intervals() -> None:
    """Catches one interval drawn as the other, and one in general from a single dataset."""
    (here, general) = (claims([Interval(0.02, se, 9)])[0] for se in (0.005, 0.02))
    rows = [
        Contrast(0.02, 3, 0, 0, 1.0, 3, arm_a="a", here=here, general=general),
        Contrast(0.02, 3, 0, 0, 1.0, 3, arm_a="b", here=here),
    ]
    axes = outcomes.forest(rows, [{"d": [0.0, 0.1]}] * 2, 2).axes[0]
    assert here is not None
    assert general is not None
    bars = {
        (line.get_ydata()[0], line.get_marker()): (list(line.get_xdata()), line.get_linewidth())
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_marker() in ("", "|")
        and line.get_ydata()[0] == line.get_ydata()[1]
    }  # fmt: skip
    assert set(bars) == {(1, ""), (1, "|"), (0, "")}
    assert bars[1, ""][0] == [here.estimate.low, here.estimate.high]
    assert bars[1, "|"][0] == [general.estimate.low, general.estimate.high]
    assert bars[1, ""][1] > bars[1, "|"][1]


def test_ratio_curves_start_at_nothing_and_have_a_tick_per_ratio() -> None:
    """Catches ratios out of order, and a bar of one value that is made up."""
    curve = {2.0: Summary(0.04, 0.01, 4), 0.5: Summary(0.02, math.nan, 1)}
    axes = outcomes.ratio_curves({"d": {"disturb": curve}}).axes[0]
    (line,) = [c for c in axes.containers if c.get_label() == "disturb"]
    assert list(line[0].get_ydata()) == [0.0, 0.02, 0.04]
    assert list(line[0].get_xdata()) == pytest.approx([0.0, 0.5, 2.0])
    bars = [segment[:, 1] for segment in line[2][0].get_segments()]
    assert np.ptp(bars, axis=1) == pytest.approx([0.0, 0.0, 0.02])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "2"]


def test_entropies_are_shares() -> None:
    """Catches counts of 1000 synthetic images beside those of 100 real ones."""
    bins = {"real": {"edges": [0, 0.5, 1], "counts": [90, 10]},
            "disturb": {"edges": [0, 0.5, 1], "counts": [250, 750]}}  # fmt: skip
    axes = models.entropies({"d": bins}).axes[0]
    drawn = {p.get_label(): p for p in axes.patches}
    assert list(drawn["held-out real"].get_data().values) == pytest.approx([0.9, 0.1])
    assert list(drawn["disturb"].get_data().values) == pytest.approx([0.25, 0.75])
    assert drawn["held-out real"].get_fill()
    assert not drawn["disturb"].get_fill()


def test_distance_against_gain() -> None:
    """Catches swapped axes, a lost yardstick, an arm in another colour than elsewhere."""
    points = {"duplicate": (0.1, 2.0, 0.0), "disturb for resnet18": (9.0, 2.0, 0.02)}
    axes = models.fd_against_gain({"d": points}).axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert drawn["disturb for resnet18"].get_xydata().tolist() == [[9.0, 0.02]]
    assert to_hex(drawn["disturb for resnet18"].get_color()) == base.ARM_COLOURS["disturb"]
    assert list(drawn["held-out real images"].get_xdata()) == [2.0, 2.0]


def test_a_picture_keeps_its_colours() -> None:
    """Catches a palette that turns a rare colour into another: one red dot among many greys."""
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.imshow(np.random.default_rng(0).uniform(0, 1, (60, 90)), cmap="viridis")
    axes.plot(5, 5, "o", ms=4, color="#ff0000")
    picture = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).astype(int)
    off = np.abs(picture - [255, 0, 0]).max(axis=2)
    assert (off <= 16).sum() > 10
