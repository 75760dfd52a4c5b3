"""The video models that this pack brings itself."""
