"""Tuned motion in native models."""
