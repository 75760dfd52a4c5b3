"""Reading weight files for the whole pack, and writing files of every kind."""
