"""One long film from one prompt or several."""
