"""Stable Diffusion files: their U-Nets, text encoders and VAEs."""
