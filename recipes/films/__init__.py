"""Films as files and as pictures."""
