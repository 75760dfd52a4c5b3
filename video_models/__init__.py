"""The video models that come with this pack."""
