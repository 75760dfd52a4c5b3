"""Tokens and conditionings of ComfyUI's text encoders."""
