"""A look at own images before a study: what is there, what would spoil it, a first study file."""
