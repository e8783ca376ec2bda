"""The diffusion method: schedule, models, losses, guidance, samplers and the two stages."""
