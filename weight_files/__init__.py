"""Weight files as every room of this pack reads them."""
