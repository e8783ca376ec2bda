"""Downstream classifiers: the ten networks, their training and their metrics."""
