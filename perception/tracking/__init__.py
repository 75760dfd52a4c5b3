"""One tracker over any of those models: which object is which, in both directions of time."""
