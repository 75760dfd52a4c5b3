"""Boxes from words: GroundingDINO of every kind behind one detector."""
