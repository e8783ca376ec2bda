"""Datasets: facts, files, phantoms, mixing real and synthetic images, sanity checks."""
