"""Set up this checkout.

    python install.py            add what this Python lacks; nothing that is installed moves (ComfyUI Manager runs this)
    python install.py NAME       the same with an extra: motion-tuning or evaluation
    python install.py --dry-run  say what would be added; changes nothing (a NAME may go with it)
    python install.py demo       install, then make two videos with the Toybox models; results in output/
    python install.py test       install with all extras, then run the tests, those with ComfyUI on each one found
    python install.py test --all the same with the slow tests too: whole programs, training, models of full size

``demo`` and ``test`` use the active virtual environment, else one in ``.venv`` that they make. Words after the command
go to ``cli.py refine`` or to pytest. tests/on_hosts.py says where ComfyUI is looked for and how the tests meet it. Only
the standard library is imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LEAST_PYTHON = (3, 10)
# A plain line of requirements.txt would move what ComfyUI's users have (diffusers: safetensors; OpenCV: numpy, and the
# files of opencv-python-headless); added under constraints.
GUARDED = ("diffusers>=0.31", "opencv-python>=4.7")
# The package goes in without its dependencies, one of which is pinned to a version that few can use; these are what its
# model imports beside GUARDED and requirements.txt.
GROUNDING_DINO = (
    *("groundingdino-py>=0.4.0", "addict>=2.4", "yapf>=0.40", "timm>=0.9", "pycocotools>=2.0.6", "matplotlib>=3.5"),
)
EXTRAS = {
    "motion-tuning": ("accelerate>=0.30", "peft>=0.11"),
    "evaluation": ("scipy>=1.10",),
}
TEST_EXTRAS = ("pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.6", "hypothesis>=6.80", "mypy>=1.10")
# New environments come with old ones, which would hold back torch.
BUILD_TOOLS = {"pip", "setuptools", "wheel"}
WITHOUT_DEPENDENCIES = {"groundingdino-py"}
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# What is lost when a package cannot be installed; everything else works without it.
OPTIONAL = {
    "accelerate": "tuning of motion",
    "peft": "tuning of motion by LoRA",
    "scipy": "measuring of trackers",
    "segment-anything": "reading SAM files in their original format",
    **{line.split(">=")[0]: "reading GroundingDINO files in their original format" for line in GROUNDING_DINO},
    "timm": "EdgeTAM, and no reading GroundingDINO files in their original format",
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


def everything() -> list[str]:
    """All that the nodes and the recipes use; extras come on top."""
    return [*requirements(), *GUARDED, *GROUNDING_DINO]


def all_extras() -> list[str]:
    """What features need that not everybody uses."""
    return [line for lines in EXTRAS.values() for line in lines]


def package_name(requirement: str) -> str:
    """``torch>=2.1`` -> ``torch``."""
    return requirement.split(">=")[0].strip()


def is_installed(requirement: str) -> bool:
    """Whether this Python has the package in a version that is new enough; any OpenCV will do."""
    name, _, least = requirement.partition(">=")
    if name == "opencv-python":
        return importlib.util.find_spec("cv2") is not None or any(_version(entry) for entry in OPENCV)
    have = _version(name.strip())
    return have is not None and _numbers(have) >= _numbers(least)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """``2.10.0+cu121`` -> (2, 10, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version)[0]))


def missing_here(wanted: list[str]) -> list[str]:
    """Which of these requirements this Python lacks."""
    return [requirement for requirement in wanted if not is_installed(requirement)]


def installed_here() -> dict[str, str]:
    """Version of each package that this Python has, by normalised name; of doubles the one that is imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            found.setdefault(normalised(name), version)
    return found


def normalised(name: str) -> str:
    """``Foo_bar.baz`` -> ``foo-bar-baz``, as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def ask(python: Path, *words: str) -> list[str]:
    """What another Python answers to ``missing`` or ``installed``, in lines."""
    command = [str(python), str(ROOT / "install.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def missing_in(python: Path, wanted: list[str]) -> list[str]:
    """Which of these requirements another Python lacks."""
    return ask(python, "missing", *wanted)


def installed_in(python: Path) -> dict[str, str]:
    """Version of each package that another Python has, by normalised name."""
    return dict(line.split("==", 1) for line in ask(python, "installed"))


def check(extras: Sequence[str] = ()) -> int:
    """Report what is there and what is missing; change nothing."""
    say(f"Mask-Guided Video: Python {sys.version.split()[0]}")
    missing = missing_here([*everything(), *extras])
    for requirement in missing:
        cost = OPTIONAL.get(package_name(requirement))
        say(f"  missing: {requirement}" + (f" (without it: no {cost})" if cost else ""))
    if not missing:
        say("  all requirements are installed.")
    opencv = next((entry for entry in OPENCV if _version(entry)), None)
    if opencv and importlib.util.find_spec("cv2") is None:
        say(f"  {opencv} is installed, but its module cv2 is not there; mend it with: python -m pip install "
            f"--force-reinstall --no-deps {opencv}=={_version(opencv)}")  # fmt: skip
    absent = [name for name in WEIGHTS if not any((ROOT / "toybox" / name).glob("**/*.safetensors"))]
    if absent:
        say(f"  Toybox weights missing: {', '.join(absent)}; clone the repository again to have the demo.")
    else:
        say("  the Toybox models are there.")
    return 0


def set_up(names: Sequence[str], dry_run: bool) -> int:
    """Add what this Python lacks, moving nothing; the exit status is 1 when something that is needed is missing."""
    extras = [line for name in names for line in EXTRAS[name]]
    if not is_installed("torch"):
        check(extras)
        say("  nothing was changed, as this Python has no torch and so is not ComfyUI's; `python install.py demo` "
        "makes an environment, and `python -m pip install -r requirements.txt` fills one of your own.")  # fmt: skip
        return 0
    failed = add_missing(Path(sys.executable), [*everything(), *extras], dry_run=dry_run)
    return int(any(package_name(line) not in OPTIONAL for line in failed)) if dry_run else _report(extras, failed)


def _report(extras: Sequence[str], failed: Sequence[str]) -> int:
    # In a process of its own: this one's caches do not see what was installed since it started.
    subprocess.run([sys.executable, str(ROOT / "install.py"), "check", *extras])
    return int(any(package_name(line) not in OPTIONAL for line in failed))


def environment_python() -> Path:
    """The Python of the active virtual environment, else of ``.venv``, which is made when it is not there."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    return make_environment(Path(sys.executable), VENV)


def make_environment(python: Path, folder: Path) -> Path:
    """The Python of the virtual environment in ``folder``, which ``python`` makes when it is not there."""
    made = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not made.exists() or subprocess.run([str(made), "-m", "pip", "--version"], capture_output=True).returncode:
        say(f"Making a virtual environment in {folder} ...")
        if subprocess.run([str(python), "-m", "venv", "--clear", str(folder)]).returncode:
            raise SystemExit(
                f"install.py: no virtual environment could be made with {python}; install Python's venv module "
                "(on Debian and Ubuntu the package python3-venv) or activate an environment of your own."
            )
    return made


def install(python: Path, wanted: list[str]) -> None:
    """Install what is missing or too old; an ``OPTIONAL`` package that fails costs its feature and nothing else."""
    missing = missing_in(python, wanted)
    if not missing:
        return
    say(f"Installing {len(missing)} packages and what they need; torch alone can take minutes ...")
    started = time.monotonic()
    failed = add_missing(python, wanted, update=True)
    if any(package_name(line) not in OPTIONAL for line in failed):
        raise SystemExit("install.py: the requirements could not be installed; pip's messages above say why.")
    say(f"Installed in {time.monotonic() - started:.0f} s.")


def add_missing(python: Path, wanted: list[str], update: bool = False, dry_run: bool = False) -> list[str]:
    """Install what is missing while everything that is installed is held where it is.

    Args:
        python: into whose environment.
        wanted: requirements.
        update: those of ``wanted`` that are installed in too old a version move, and the tools that build packages
            may; else they stay, and it is said.
        dry_run: only say what would come.

    Returns:
        The requirements that are not there now; each one's cost has been said.
    """
    missing, held = missing_in(python, wanted), installed_in(python)
    old = [line for line in missing if normalised(package_name(line)) in held]
    stay = [] if update else old
    for line in stay:
        say(f"  {package_name(line)} {held[normalised(package_name(line))]} stays as it is; {line} is wanted.")
    free = {normalised(package_name(line)) for line in old} | BUILD_TOOLS if update else set()
    coming = [line for line in missing if line not in stay]
    alone = [line for line in coming if package_name(line) in WITHOUT_DEPENDENCIES]
    failed: list[str] = []
    with constraints({name: version for name, version in held.items() if name not in free}) as options:
        options = [*options, *(["--dry-run"] if dry_run else [])]
        failed += _add_together(python, [line for line in coming if line not in alone], options)
        failed += _add_together(python, alone, [*options, "--no-deps"])
    for line in failed:
        cost = OPTIONAL.get(package_name(line))
        say(f"{line} could not be installed" + (f"; without it: no {cost}." if cost else "."))
    return [*stay, *failed]


def _add_together(python: Path, wanted: list[str], options: list[str]) -> list[str]:
    """All at once, else the needed ones and then each optional one by itself; returns those that failed."""
    if not wanted or not pip_install(python, [*options, *wanted]):
        return []
    needed = [line for line in wanted if package_name(line) not in OPTIONAL]
    if needed == wanted or len(wanted) == 1:
        return wanted
    say("Installing all at once failed; trying again without the optional packages ...")
    if needed and pip_install(python, [*options, *needed]):
        return wanted
    return [line for line in wanted if line not in needed and pip_install(python, [*options, line])]


@contextmanager
def constraints(held: Mapping[str, str]) -> Iterator[list[str]]:
    """Options that keep pip from moving these packages; versions that pip would not read are left out."""
    lines = [f"{name}=={version}\n" for name, version in sorted(held.items()) if re.match(r"v?\d[\w.!+-]*$", version)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("".join(lines), encoding="utf-8")
        yield ["--constraint", str(path)]


def pip_install(python: Path, arguments: list[str]) -> int:
    """Run pip; returns its exit status. What a dry run would install is said."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if "--dry-run" not in arguments:
        return subprocess.run(command).returncode
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        status = subprocess.run([*command, "--report", str(report)]).returncode
        coming = json.loads(report.read_text(encoding="utf-8"))["install"] if status == 0 else []
    for entry in coming:
        say(f"  would add: {normalised(entry['metadata']['name'])}=={entry['metadata']['version']}")
    return status


def demo(arguments: list[str]) -> int:
    """Install, then run Mask Refine on the Toybox."""
    python = environment_python()
    install(python, [*everything(), *all_extras()])
    return subprocess.run([str(python), str(ROOT / "cli.py"), *DEMO, *arguments], cwd=ROOT).returncode


def test(arguments: list[str]) -> int:
    """Install with the test extras, then run the suite; the exit status is pytest's."""
    python = environment_python()
    install(python, [*everything(), *all_extras(), *TEST_EXTRAS])
    return subprocess.run([str(python), str(ROOT / "tests" / "on_hosts.py"), *arguments], cwd=ROOT).returncode


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < LEAST_PYTHON:
        say(f"Mask-Guided Video needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
        return 1
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("demo", "test"):
        return (demo if command == "demo" else test)(rest)
    if command == "check":
        return check(rest)
    if command in ("missing", "installed"):
        # One Python process runs this in another.
        found = [f"{name}=={version}" for name, version in installed_here().items()]
        say("\n".join(found if command == "installed" else missing_here(rest)))
        return 0
    names = [name for name in arguments if name != "--dry-run"]
    if all(name in EXTRAS for name in names):
        return set_up(names, dry_run="--dry-run" in arguments)
    say((__doc__ or "").strip())
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
