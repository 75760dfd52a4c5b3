"""Backbones: which attention call of which model family is which site, and how guidance is installed."""
