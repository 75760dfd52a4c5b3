"""Errors that callers can catch.

ValueError
    GuideError          a guide or another patch has a setting that cannot be, or does not fit the clip or its prompts
    ModelNotSupported   attention of this model, or of this way to sample it, cannot be guided
"""

from __future__ import annotations


class GuideError(ValueError):
    """A guide or another patch that cannot be used as it is; the message names the value and the way out."""


class ModelNotSupported(ValueError):
    """A model, or a way to sample it, whose attention cannot be guided; the message names what can."""
