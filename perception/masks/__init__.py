"""Masks of a film refined: gaps, flicker, parts, holes, outlines."""
