"""Noise, schedules, steps and windows."""
