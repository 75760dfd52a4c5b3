"""Masks of a video refined: gaps, flicker, parts, holes, outlines."""
