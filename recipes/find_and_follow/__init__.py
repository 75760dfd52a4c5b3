"""Find objects by words and follow them through a video."""
