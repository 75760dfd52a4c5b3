"""Mask-Guided Video from a shell: ``python cli.py refine --prompt ... --object ...`` and other commands."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

from bootstrap import PACKAGE_NAME, ROOT, import_package

CANCELLED = 130
WRONG_INPUT = 2
# Modules in commands/.
COMMANDS = {
    "refine": "make a video, find its objects, make it again guided by their masks",
    "follow": "find objects in a video of your own by words and follow their masks",
    "guide": "make clips in which objects go where masks go, one after another",
    "generate": "make a video that is longer than those a model was trained on",
    "metrics": "measure whether the objects of a video went where their masks are",
    "convert": "write a LaVie model file as safetensors",
}
# Commands whose module is in training/: they bring their own arguments.
TRAINING_COMMANDS = {"train-motion": "tune a video model to a motion, with a handful of clips and masks"}
# Scripts in training/, by the beginning of their names.
SCRIPTS = {"train": "train a Toybox model", "evaluate": "measure a Toybox model"}


def module(name: str) -> Any:
    """Import a module of the package, which gets its fixed name first."""
    import_package()
    return importlib.import_module(f"{PACKAGE_NAME}.{name}")


def script_names(kind: str) -> list[str]:
    """``training/train_detector.py`` is ``detector`` of the kind ``train``."""
    names = {path.stem[len(kind) + 1 :] for path in (ROOT / "training").glob(f"{kind}_*.py")}
    return sorted(name for name in names if f"{kind}-{name}" not in TRAINING_COMMANDS)


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults that are None are the recipe's own."""
    parser = argparse.ArgumentParser(prog="cli.py", description="Mask-Guided Video from a shell.")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, words in COMMANDS.items():
        module(f"commands.{name}").add_arguments(commands.add_parser(name, help=words))
    for name, words in TRAINING_COMMANDS.items():
        commands.add_parser(name, help=words, add_help=False)
    for kind, words in SCRIPTS.items():
        script = commands.add_parser(kind, help=words, add_help=False)
        script.add_argument("name", help=f"one of: {', '.join(script_names(kind)) or 'none yet'}")
        script.add_argument("arguments", nargs=argparse.REMAINDER, help="for the script; --help lists them")
    return parser


def run_script(kind: str, name: str, arguments: Sequence[str]) -> int:
    """Run ``main(arguments)`` of a script in training/."""
    known = script_names(kind)
    if name not in known:
        raise ValueError(f"there is nothing named {name!r} to {kind}; choose one of {', '.join(known) or 'none yet'}.")
    return int(module(f"training.{kind}_{name}").main(list(arguments)) or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 wrong input, 130 cancelled."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = build_parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command not in TRAINING_COMMANDS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        if options.command in COMMANDS:
            return module(f"commands.{options.command}").run(options)
        if options.command in TRAINING_COMMANDS:
            return int(module(f"training.{options.command.replace('-', '_')}").main(others) or 0)
        return run_script(options.command, options.name, options.arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\ncli.py: cancelled; no file was left half-written.\n")
        return CANCELLED
    except ImportError as error:
        if options.debug or (error.name or "").startswith(PACKAGE_NAME):
            raise
        text = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            command = module("missing_packages").install_command(error.name)
            text = f"the package {error.name!r} is not installed; run: {command}"
        sys.stderr.write(f"cli.py: {text}\n")
        return WRONG_INPUT
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        sentence = module("commands.running").sentence_of(error)
        if options.debug or sentence is None:
            raise
        sys.stderr.write(f"cli.py: {sentence}\n")
        return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
