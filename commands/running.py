"""What the commands share: common arguments, loading models, writing what was made."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..recipes.given.paths import given_path

# Arguments of every command that are not settings of a recipe.
NOT_SETTINGS = frozenset({"command", "debug", "out", "device", "threads", "quiet"})
# In the errors of torch on processors and on graphics cards; it has no class for the first.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs models."""
    parser.add_argument("--out", type=given_path, default=Path("output"), metavar="FOLDER", help="default: output")
    parser.add_argument("--device", help="cpu, cuda ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_share(group: Any) -> None:
    """How strong a guide is, as a share of attention."""
    group.add_argument(
        "--share", type=float, metavar="PART",
        help="in place of the mode's own gain: part of its attention, 0 to 0.99, that an object's place shall give to "
        "the object's words (or to itself); every head finds the gain that takes",
    )  # fmt: skip
    group.add_argument(
        "--share-among",
        help="kind: of all words (or of the whole video); all: of all tokens, in joint attention too (default: kind)",
    )


def given_goal(options: argparse.Namespace) -> dict[str, Any]:
    """The share that ``add_share`` read, as a setting; nothing where none is given.

    Raises:
        ValueError: a share out of its range, or what it is a part of without one.
    """
    from ..recipes.given.constants import share_goal

    goal = share_goal(options.share, options.share_among)
    return {} if goal is None else {"goal": goal}


def set_threads(count: int | None) -> None:
    """Compute with this many threads; None leaves torch's own choice."""
    if count is None:
        return
    if not 1 <= count <= 1024:
        raise ValueError(f"threads is {count}; give a number from 1 to 1024.")
    import torch

    torch.set_num_threads(count)


def write(text: str) -> None:
    """To standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()


def given_settings(options: argparse.Namespace, others: Collection[str] = ()) -> dict[str, Any]:
    """What was given on the command line and is a setting: not None, not common, not one of ``others``."""
    return {
        name: value
        for name, value in vars(options).items()
        if value is not None and name not in NOT_SETTINGS and name not in others
    }


def sentence_of(error: BaseException) -> str | None:
    """What a user can mend, in a sentence; None for a fault of the program, of which the traceback tells more.

    Errors of values and of files are the user's, since everything that is given is checked and refused by them. So are
    models that answer nonsense, and too little memory. What else happens is a fault.
    """
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.filename is not None:
        return f"{os.fsdecode(error.filename)!r} cannot be used ({error.strerror})."
    if isinstance(error, (ValueError, OSError, MemoryError)) and str(error):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return "there is too little memory for this; make the video smaller or shorter, or take a smaller model."
    from ..perception.answers import BrokenAnswerError

    return str(error) if isinstance(error, BrokenAnswerError) else None


def write_result(summary: str, folder: Path, names: Collection[str]) -> None:
    """Write what came out, and where the files are."""
    write(f"\n{summary}\n\n")
    for name in names:
        write(f"{(folder / name).resolve()}\n")
