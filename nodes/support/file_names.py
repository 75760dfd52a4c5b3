"""Names that users give for files in ComfyUI's folders, checked before the work whose result they are for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import folder_paths

# What follows a prefix.
FILM, MOTION, FOLDER = "_00001_.mp4", "_00001_.safetensors", ""
# Bytes that a part of a path may have on every usual file system.
LONGEST = 255
# Of Windows alone.
FORBIDDEN_ON_WINDOWS = re.compile(r'[<>:"|?*\x00-\x1f]')
PLACE_HOLDER = re.compile("%[a-z]+%")


def prefix_problem(prefix: Any, follows: str, name: str = "filename_prefix") -> str:
    """Why no file can have a name that begins so; empty when one can.

    Args:
        prefix: of the user, with folders and ComfyUI's place holders; anything but a text is left to others.
        follows: what is put after it.
        name: of the input, for the message.
    """
    if not isinstance(prefix, str):
        return ""
    shown = repr(prefix if len(prefix) <= 60 else prefix[:60] + " ...")
    if "\0" in prefix or (os.name == "nt" and FORBIDDEN_ON_WINDOWS.search(PLACE_HOLDER.sub("", prefix))):
        return f"{name} is {shown}, which has characters that no file name can have; leave them out."
    try:
        parts = [os.fsencode(part) for part in re.split(r"[/\\]", PLACE_HOLDER.sub("", prefix))]
    except UnicodeEncodeError:
        return f"{name} is {shown}, which has characters that no file name can have; leave them out."
    longest = max(*map(len, parts[:-1]), len(parts[-1]) + len(follows), 0)
    if longest > LONGEST:
        return (
            f"{name} is {shown}, which makes a name of {longest} bytes; shorten it to {LONGEST} with what follows it."
        )
    return ""


def save_path(
    prefix: str, root: str, follows: str, size: tuple[int, int] = (0, 0), name: str = "filename_prefix"
) -> tuple[Path, str, int, str]:
    """Where ComfyUI keeps what is saved under a name.

    Args:
        prefix: of the user.
        root: ComfyUI's folder for it.
        follows: what is put after it.
        size: width and height, which may be a part of the name.
        name: of the input, for messages.

    Returns:
        The folder, made where it was missing; the beginning of the file's name; the next number; the folder within
        ``root``.

    Raises:
        ValueError: no name, or one that no file can have. Names outside of ``root`` are refused by the host.
    """
    problem = prefix_problem(prefix, follows, name)
    if problem:
        raise ValueError(problem)
    if not prefix.strip(" ./\\"):
        raise ValueError(f"{name} is {prefix!r}; give a name, such as video/long.")
    try:
        folder, beginning, number, subfolder, _ = folder_paths.get_save_image_path(prefix, root, *size)
    except OSError as error:
        raise ValueError(
            f"{name} is {prefix!r}, and its folder cannot be made ({error.strerror}); give another name."
        ) from error
    return Path(folder), beginning, number, subfolder
