"""Our own model files as native MODEL, CLIP and VAE."""
