"""Set up this checkout.

    python install.py         check and report; changes nothing (ComfyUI Manager runs this)
    python install.py demo    install, then make two films with the Toybox models; results in output/
    python install.py test    install with the test extras, then run the test suite

``demo`` and ``test`` use the active virtual environment, else one in ``.venv`` that they make. Words after the command
go to ``cli.py refine`` or to pytest. Only the standard library is imported here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LEAST_PYTHON = (3, 10)
TEST_EXTRAS = ("pytest>=8.0", "ruff>=0.6", "hypothesis>=6.80")
# What is lost when a package cannot be installed; everything else works without it.
OPTIONAL = {
    "accelerate": "tuning of motion",
    "peft": "tuning of motion by LoRA",
    "groundingdino-py": "reading GroundingDINO files in their original format",
    "segment-anything": "reading SAM files in their original format",
}
DEMO = (
    *("refine", "--model", "toybox", "--prompt", "a white square moves down on the sea", "--object", "white square"),
    # Models this small gain next to nothing from more threads, and much is lost where other work takes one away.
    *("--mode", "cross_text", "--seed", "29", "--threads", "1"),
)
WEIGHTS = ("text_to_video", "detector", "segmenter")


def say(text: str) -> None:
    """Write a line at once, also where the output is a file."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def requirements() -> list[str]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def package_name(requirement: str) -> str:
    """``torch>=2.1`` -> ``torch``."""
    return requirement.split(">=")[0].strip()


def is_installed(requirement: str) -> bool:
    """Whether this Python has the package in a version that is new enough."""
    name, _, least = requirement.partition(">=")
    try:
        have = metadata.version(name.strip())
    except metadata.PackageNotFoundError:
        return False
    return _numbers(have) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """``2.10.0+cu121`` -> (2, 10, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version)[0]))


def missing_here(wanted: list[str]) -> list[str]:
    """Which of these requirements this Python lacks."""
    return [requirement for requirement in wanted if not is_installed(requirement)]


def missing_in(python: Path, wanted: list[str]) -> list[str]:
    """Which of these requirements another Python lacks."""
    command = [str(python), str(ROOT / "install.py"), "missing", *wanted]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def check() -> int:
    """Report what is there and what is missing; change nothing."""
    say(f"Mask-Guided Video: Python {sys.version.split()[0]}")
    missing = missing_here(requirements())
    for requirement in missing:
        cost = OPTIONAL.get(package_name(requirement))
        say(f"  missing: {requirement}" + (f" (without it: no {cost})" if cost else ""))
    if missing:
        say("  install them with: python -m pip install -r requirements.txt")
    else:
        say("  all requirements are installed.")
    absent = [name for name in WEIGHTS if not any((ROOT / "toybox" / name).glob("**/*.safetensors"))]
    if absent:
        say(f"  Toybox weights missing: {', '.join(absent)}; clone the repository again to have the demo.")
    else:
        say("  the Toybox models are there.")
    return 0


def environment_python() -> Path:
    """The Python of the active virtual environment, else of ``.venv``, which is made when it is not there."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists() or subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode:
        say(f"Making a virtual environment in {VENV} ...")
        if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
            raise SystemExit(
                f"install.py: no virtual environment could be made with {sys.executable}; install Python's venv module "
                "(on Debian and Ubuntu the package python3-venv) or activate an environment of your own."
            )
    return python


def install(python: Path, wanted: list[str]) -> None:
    """Install what is missing; a package of ``OPTIONAL`` that fails costs its feature and nothing else."""
    missing = missing_in(python, wanted)
    if not missing:
        return
    say(f"Installing {len(missing)} packages and what they need; torch alone can take minutes ...")
    started = time.monotonic()
    if pip_install(python, wanted):
        say("Installing all at once failed; trying again without the optional packages ...")
        if pip_install(python, [line for line in wanted if package_name(line) not in OPTIONAL]):
            raise SystemExit("install.py: the requirements could not be installed; pip's messages above say why.")
        for line in missing:
            if package_name(line) in OPTIONAL and pip_install(python, [line]):
                say(f"{line} could not be installed; without it: no {OPTIONAL[package_name(line)]}.")
    say(f"Installed in {time.monotonic() - started:.0f} s.")


def pip_install(python: Path, arguments: list[str]) -> int:
    """Run pip; returns its exit status."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command).returncode


def comfyui_requirements() -> list[str]:
    """What a ComfyUI checkout at ``COMFYUI_PATH``, else ~/comfy/ComfyUI, asks for; empty when there is none.

    Without torch and its companions: a torchaudio built for another torch than the installed one breaks the import of
    transformers and diffusers.
    """
    named = os.environ.get("COMFYUI_PATH")
    folder = Path(named).expanduser() if named else Path.home() / "comfy" / "ComfyUI"
    path = folder / "requirements.txt"
    if not path.is_file():
        return []
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not re.match(r"torch(vision|audio)?\b", line)]


def demo(arguments: list[str]) -> int:
    """Install, then run Mask Refine on the Toybox."""
    python = environment_python()
    install(python, requirements())
    return subprocess.run([str(python), str(ROOT / "cli.py"), *DEMO, *arguments], cwd=ROOT).returncode


def test(arguments: list[str]) -> int:
    """Install with the test extras, then run the suite; the exit status is pytest's."""
    python = environment_python()
    install(python, [*requirements(), *TEST_EXTRAS])
    comfyui = comfyui_requirements()
    if comfyui:
        say("ComfyUI found: installing what it asks for, so that the tests with ComfyUI run too ...")
        if pip_install(python, comfyui):
            say("That failed; the tests with ComfyUI will be skipped.")
    return subprocess.run([str(python), "-m", "pytest", *arguments], cwd=ROOT).returncode


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < LEAST_PYTHON:
        say(f"Mask-Guided Video needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
        return 1
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if not command:
        return check()
    if command == "missing":
        say("\n".join(missing_here(rest)))
        return 0
    if command in ("demo", "test"):
        return (demo if command == "demo" else test)(rest)
    say((__doc__ or "").strip())
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
