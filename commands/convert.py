"""Write a LaVie model file as safetensors."""

from __future__ import annotations

import argparse

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``convert``."""
    parser.add_argument(
        "source", type=given_path, help="lavie_base.pt, lavie_interpolation.pt, lavie_vsr.pt or a copy of one"
    )
    parser.add_argument("--out", type=given_path, metavar="FILE", help="default: the source's name with .safetensors")
    parser.add_argument("--precision", help="float32, float16 or bfloat16 (default: as in the source)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of the same name")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Convert the file."""
    from ..recipes.convert_weights import convert_weights

    with StageBars(options.quiet) as bars:
        result = convert_weights(options.source, options.out, options.precision, options.overwrite, bars)
    write(f"{result.summary()}\n{result.target.resolve()}\n")
    return 0
