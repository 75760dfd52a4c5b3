"""What the commands share: common arguments, loading models, writing what was made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

# Arguments of every command that are no settings of a recipe.
NOT_SETTINGS = frozenset({"command", "debug", "out", "device", "threads", "quiet"})


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs models."""
    parser.add_argument("--out", type=Path, default=Path("output"), metavar="FOLDER", help="default: output")
    parser.add_argument("--device", help="cpu, cuda ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def set_threads(count: int | None) -> None:
    """Compute with so many threads; None leaves torch's own choice."""
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


def load(loader: Callable[..., Any], *arguments: Any) -> Any:
    """Call a loader of models; what is wrong with the files becomes one kind of error.

    Raises:
        ValueError: the models cannot be loaded, and why.
    """
    from transformers.utils.logging import disable_progress_bar

    # The run has bars of its own.
    disable_progress_bar()
    try:
        return loader(*arguments)
    except (OSError, RuntimeError, ImportError) as error:
        raise ValueError(f"the models cannot be loaded: {error}") from error


def write_result(summary: str, folder: Path, names: Collection[str]) -> None:
    """Write what came out, and where the files are."""
    write(f"\n{summary}\n\n")
    for name in names:
        write(f"{(folder / name).resolve()}\n")
