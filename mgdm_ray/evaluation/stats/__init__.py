"""Spread, paired contrasts, ranks, what can be resolved, and what may be concluded from it.

docs/statistics.md says of each number its formula, its premises and its source.
"""

from mgdm_ray.evaluation.stats.images import (
    LEVEL,
    Components,
    ImageContrast,
    PairedPredictions,
    components,
    image_contrast,
)
from mgdm_ray.evaluation.stats.paired import (
    ALPHA,
    RANDOM_FLIPS,
    TIE,
    Contrast,
    Floats,
    Summary,
    datasets_needed,
    holm,
    paired_contrast,
    rank_biserial,
    summarise,
)
from mgdm_ray.evaluation.stats.power import POWER, Design, detectable, detectable_after
from mgdm_ray.evaluation.stats.ranks import Ranking, critical_difference, rank
from mgdm_ray.evaluation.stats.table import (
    PRIMARY,
    IncompleteGrid,
    contrast_table,
    sentence,
    verdict,
)

__all__ = [
    "ALPHA",
    "LEVEL",
    "POWER",
    "PRIMARY",
    "RANDOM_FLIPS",
    "TIE",
    "Components",
    "Contrast",
    "Design",
    "Floats",
    "ImageContrast",
    "IncompleteGrid",
    "PairedPredictions",
    "Ranking",
    "Summary",
    "components",
    "contrast_table",
    "critical_difference",
    "datasets_needed",
    "detectable",
    "detectable_after",
    "holm",
    "image_contrast",
    "paired_contrast",
    "rank",
    "rank_biserial",
    "sentence",
    "summarise",
    "verdict",
]
