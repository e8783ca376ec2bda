"""Inspect own images before a study: contents, duplicates, findings, a page with pictures."""
