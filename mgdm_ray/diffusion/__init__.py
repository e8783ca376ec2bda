"""Denoiser and guide: networks, training, guidance and sampling."""

TENSORS_FILE, STATE_FILE = "state.safetensors", "state.json"
"""Files of a training's checkpoint."""
