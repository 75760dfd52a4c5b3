"""Model folders, known models, downloads and loading."""
