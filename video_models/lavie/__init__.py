"""LaVie: base model, interpolation and upscaling, with their files."""
