"""Modes of mask guidance: one rule of where words and frames may look, with its published constants, per file."""
