"""Statistics of cells and measures of images: numbers from numbers, no models."""
