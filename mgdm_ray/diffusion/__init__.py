"""The diffusion method: schedule, models, losses, guidance, samplers and the two stages."""

TENSORS_FILE, STATE_FILE = "state.safetensors", "state.json"
"""Of a saved training state; here, so that no torch is needed to name them."""
