"""How well a video follows its masks."""
