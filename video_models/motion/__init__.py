"""Motion tuned into a model, and its files."""
