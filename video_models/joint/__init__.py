"""A small video transformer with one joint stream of text and video, which runs by itself."""
