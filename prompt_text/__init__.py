"""Words of prompts, and where they stand among the tokens that a text encoder makes of them."""
