"""A user's own images: listed, divided by patient, made square."""
