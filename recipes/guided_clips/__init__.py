"""Clips that follow their masks, round after round."""
