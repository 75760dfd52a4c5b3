"""Videos as files and as pictures."""
