"""Clips that follow their masks, one round after another."""
