"""Statistics of cells and measures of images: numbers from numbers, no models."""

METRIC = "balanced_accuracy"
"""What cells are compared by; chance is 1 / classes."""
