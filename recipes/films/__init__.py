"""Films as files and as pictures."""

from .files import read_film, read_film_bytes, read_picture, write_film

__all__ = ["read_film", "read_film_bytes", "read_picture", "write_film"]
