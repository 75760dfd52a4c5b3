"""Generate, find and track objects, generate again under their masks."""
