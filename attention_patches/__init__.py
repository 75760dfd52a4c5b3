"""The engine: change what queries, keys and values meet, at some attention calls, of any model."""
