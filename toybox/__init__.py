"""Toybox: tiny models of the real kinds, and the synthetic world they were trained on."""
