"""Datasets: facts, files, phantoms, splits, checks, mixing real and synthetic images."""
