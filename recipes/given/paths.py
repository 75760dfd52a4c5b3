"""Paths as they come from a command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path


def given_path(text: str) -> Path:
    """A path of the command line, for ``type=`` of an argument.

    Raises:
        ArgumentTypeError: it is empty, which would be the current folder.
    """
    if not text.strip():
        raise ArgumentTypeError(f"it is {text!r}; give a path (is a variable of the shell empty?)")
    return Path(text)
