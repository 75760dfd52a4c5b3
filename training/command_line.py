"""What the training commands have in common: their arguments, and how a run begins."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..recipes.given.paths import given_path

RUNS = Path("training/runs")


def training_parser(
    name: str, description: str | None, out: Path, *, steps: int, batch: int, learning_rate: float, seed: int = 1
) -> argparse.ArgumentParser:
    """Make the parser of a training command, with the arguments that all have.

    Args:
        name: of the command and of its folder below ``training/runs``.
        description: for ``--help``.
        out: default folder of the trained model.
        steps, batch, learning_rate, seed: defaults.
    """
    parser = argparse.ArgumentParser(
        prog=f"train {name}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", type=given_path, default=RUNS / name, help="folder of the checkpoints and the log")
    parser.add_argument("--out", type=given_path, default=out, help="folder of the trained model")
    parser.add_argument("--steps", type=int, default=steps, help="steps to train")
    parser.add_argument("--batch", type=int, default=batch, help="examples per step")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="between warm-up and decay")
    parser.add_argument("--seed", type=int, default=seed, help="of all random numbers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for torch's choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to train on")
    return parser


def begin(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments, set threads and seed, and send the log to the run's folder."""
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    log_to_file(options.run)
    torch.manual_seed(options.seed)
    return options


def log_to_file(folder: Path) -> None:
    """Send this package's log to ``folder/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger(__name__.rsplit(".", 1)[0])
    package.addHandler(handler)
    package.setLevel(logging.INFO)
