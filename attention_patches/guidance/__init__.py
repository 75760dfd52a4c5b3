"""Mask guidance: where objects are, what each mode adds to attention there, and the patch that does it."""
