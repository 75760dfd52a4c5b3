"""Functions that compute attention: plain, with region channels, in parts, and with explicit biases."""
