"""Weight files as every room of this pack reads them, and how it writes files of every kind."""
