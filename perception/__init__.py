"""Finding and following objects in video: boxes from words, masks from boxes, tracks over time."""
