"""One tracker over any segmentation model: which object is which, in both directions of time."""
