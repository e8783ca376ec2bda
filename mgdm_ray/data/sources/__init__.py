"""One's own images: found in folders, manifests and tables, divided by patient, made square."""
