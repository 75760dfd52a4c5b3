"""Finding and following objects in film: boxes from words, masks from boxes, tracks over time."""
