"""Tune a motion into a video model from a few clips."""
