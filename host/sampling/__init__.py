"""Samplers, locks, noise, context windows and decoding inside ComfyUI."""
