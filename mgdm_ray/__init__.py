"""mgdm-ray: do synthetic images from a guided diffusion model make a classifier better?"""

__version__ = "0.1.0"
