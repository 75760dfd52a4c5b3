"""How well a film follows its masks."""
