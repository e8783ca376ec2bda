"""Artefacts, records and locks, in a folder or in an object store."""
