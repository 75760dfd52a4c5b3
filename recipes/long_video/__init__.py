"""One long video from one prompt or several."""
