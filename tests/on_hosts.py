"""Run the tests, those with ComfyUI once for each checkout that is found; ``python install.py test`` does so.

    python tests/on_hosts.py [pytest's arguments]
    python tests/on_hosts.py --all [pytest's arguments]     the slow tests too
    python tests/on_hosts.py --list     only say which ComfyUI checkouts are found

ComfyUI is looked for at ``COMFYUI_PATH``, which may name several folders separated as in PATH, else in ~/comfy/ComfyUI
and ~/comfy/ComfyUI-oldest. Versions of ComfyUI ask for different packages, so each gets an environment of its own,
``.venv-comfyui-VERSION``; torch and whatever else fits is shared with the Python that runs this.

The newest one runs all of them; the browser runs with it alone. Older ones run what depends on how a core lays out
models and asks for nodes (``ON_OLDER_HOSTS``), and with ``--all`` everything. Slow tests, which are those that start
whole programs, train or load models of full size, run with ``--all`` or where a file or a folder of theirs is named;
``-m`` overrules both. Tests run in one process for each core, where pytest-xdist is installed and no ``-n`` is given.

``TEST_RESULTS`` may name a folder that keeps the results; the last line is the sum of all that are there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("~/comfy/ComfyUI", "~/comfy/ComfyUI-oldest")
HOST_TESTS = "tests/comfy"
OTHER_TESTS = ("tests/unit", "tests/end_to_end")
# Where tokens stand in models of each layout, windows, words, and that nodes load and run.
PLACES = "tests/comfy/families/test_token_places.py::test_the_film_is_where_the_pack_says"
LAYOUTS = ("wan", "wan_vace_reference", "ltx", "hunyuan", "mochi", "cosmos", "cogvideox", "sd15")
ON_OLDER_HOSTS = (
    *(f"{PLACES}[{name}]" for name in LAYOUTS),
    *("tests/comfy/windows/test_native_windows.py", "tests/comfy/host/test_prompt_tokens.py"),
    *("tests/comfy/nodes/test_schemas.py", "tests/comfy/nodes/test_imports.py", "tests/comfy/nodes/test_nodes.py"),
)
# Each takes about a gigabyte of memory.
MOST_PROCESSES = 4
# What the tests ask for that ComfyUI does not: gguf for the pack of that name beside ours.
EXTRAS = ("gguf>=0.13", "playwright>=1.40")
NO_TESTS = 5


def comfyui_folders() -> list[Path]:
    """The ComfyUI checkouts that tests run with; empty when there are none.

    Raises:
        ValueError: a folder of ``COMFYUI_PATH`` holds no ComfyUI.
    """
    named = [entry for entry in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if entry]
    folders = [Path(entry).expanduser().resolve() for entry in named or HOSTS]
    found = [folder for folder in folders if (folder / "comfy" / "model_management.py").is_file()]
    if named and found != folders:
        wrong = next(folder for folder in folders if folder not in found)
        raise ValueError(f"COMFYUI_PATH names {wrong}, which holds no ComfyUI; clone it there or name another folder.")
    return found


def comfyui_version(folder: Path) -> str:
    """What a checkout calls itself, such as 0.33.0; the folder's name where it says nothing."""
    path = folder / "comfyui_version.py"
    found = re.search(r"__version__ = \"([\w.+-]+)\"", path.read_text(encoding="utf-8")) if path.is_file() else None
    return found[1] if found else folder.name


def release(folder: Path) -> tuple[int, ...]:
    """The numbers of a checkout's version, to tell which is the newer one."""
    return tuple(int(number) for number in re.findall(r"\d+", comfyui_version(folder)))


def comfyui_requirements(text: str) -> list[str]:
    """The lines of a requirements.txt, without comments."""
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


def environment(folder: Path) -> Path:
    """The Python of an environment with what one ComfyUI asks for, on top of the packages of this Python.

    Raises:
        ValueError: what it asks for cannot be installed.
    """
    # Not at the top: with the root on the path our folder `nodes` would hide ComfyUI's module of that name.
    sys.path.append(str(ROOT))
    import install

    version = comfyui_version(folder)
    python = install.make_environment(Path(sys.executable), ROOT / f".venv-comfyui-{version}")
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(packages) / "shared_packages.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")
    install.say(f"Installing what ComfyUI {version} asks for ...")
    # A second torch would take gigabytes, and torchaudio has to fit the one that is there.
    held = {name: held for name, held in install.installed_here().items() if name in ("torch", "torchvision")}
    asked = comfyui_requirements((folder / "requirements.txt").read_text(encoding="utf-8"))
    with install.constraints(held) as options:
        if install.pip_install(python, [*options, *asked, *EXTRAS]):
            raise ValueError(f"what ComfyUI {version} asks for could not be installed; pip's messages above say why.")
    tried = subprocess.run([str(python), "-c", "import torchaudio"], capture_output=True, text=True)
    if tried.returncode:
        # Its metadata lets it go with versions of torch that it fails with.
        raise ValueError(
            f"the torchaudio that ComfyUI {version} asks for fails with torch {held.get('torch')} "
            f"({tried.stderr.strip().splitlines()[-1]}); install the newest torch in {sys.prefix}."
        )
    return python


def is_path(argument: str) -> bool:
    """Whether an argument of pytest names tests."""
    return re.match(r"(\./)?tests(/|$)", argument) is not None


def split(arguments: Sequence[str]) -> tuple[list[str] | None, list[str] | None]:
    """Pytest's arguments for the run without ComfyUI and for those with it; None where only the other is asked for."""
    paths = [entry for entry in arguments if is_path(entry)]
    options = [entry for entry in arguments if entry not in paths]
    if not paths or any(entry.strip("./") == "tests" for entry in paths):
        files = [path for folder in OTHER_TESTS for path in sorted((ROOT / folder).rglob("test_*.py"))]
        marked = [path for path in files if "pytest.mark.comfy" in path.read_text(encoding="utf-8")]
        hosted = [HOST_TESTS, *(path.relative_to(ROOT).as_posix() for path in marked)]
        return [*OTHER_TESTS, *options], [*hosted, *options]
    hosted = [entry for entry in paths if entry.removeprefix("./").startswith(HOST_TESTS)]
    alone = [entry for entry in paths if entry not in hosted]
    return ([*alone, *options] if alone else None), ([*hosted, *options] if hosted else None)


def are_chosen(arguments: Sequence[str]) -> bool:
    """Whether some tests are asked for by a path: all but those of a whole part of the suite."""
    whole = {"tests", HOST_TESTS, "tests/unit"}
    return any(is_path(entry) and entry.removeprefix("./").rstrip("/") not in whole for entry in arguments)


def markers(arguments: Sequence[str], everything: bool, browser: bool = True) -> list[str]:
    """The ``-m`` for a run, unless the arguments have one: no slow tests, and none in a browser where that is said."""
    if any(entry.startswith("-m") for entry in arguments):
        return []
    left_out = [*([] if everything else ["slow"]), *([] if browser else ["browser"])]
    return ["-m", " and ".join(f"not {marker}" for marker in left_out)] if left_out else []


def processes(arguments: Sequence[str]) -> list[str]:
    """The ``-n`` for a run, unless the arguments have one or ask for a few tests only."""
    own = any(entry.startswith(("-n", "--numprocesses", "--dist", "--pdb")) for entry in arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, MOST_PROCESSES)
    if own or are_chosen(arguments) or count < 2 or importlib.util.find_spec("xdist") is None:
        return []
    # By file: models and servers that a file's tests share are made once.
    return ["-n", str(count), "--dist", "loadfile"]


def run(python: Path, arguments: Sequence[str], results: Path, comfyui: Path | None = None) -> int:
    """Run pytest, keep its results in the file ``results``, and return its exit status."""
    variables = dict(os.environ) if comfyui is None else {**os.environ, "COMFYUI_PATH": str(comfyui)}
    command = [str(python), "-m", "pytest", f"--junitxml={results}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables).returncode


def host_results(results: Path, comfyui: Path) -> Path:
    """The file that keeps the results with one ComfyUI."""
    return results / f"comfyui-{comfyui_version(comfyui)}.xml"


def run_on_hosts(
    hosts: Sequence[tuple[Path, Path]], arguments: Sequence[str], results: Path, everything: bool
) -> list[int]:
    """Run pytest with each ComfyUI, given with its Python, one after another."""
    newest = max((comfyui for comfyui, _ in hosts), key=release, default=None)
    statuses = []
    for comfyui, python in hosts:
        sys.stdout.write(f"\nThe tests with ComfyUI {comfyui_version(comfyui)} in {comfyui}:\n")
        chosen = list(arguments)
        if comfyui != newest and not everything:
            sys.stdout.write("These are the ones that depend on the version of ComfyUI; --all runs the others too.\n")
            chosen = on_older_hosts(chosen)
        sys.stdout.flush()
        # The frontend that people meet is the newest one's.
        marked = markers(arguments, everything, browser=comfyui == newest)
        statuses.append(run(python, [*chosen, *marked], host_results(results, comfyui), comfyui))
    return statuses


def on_older_hosts(arguments: Sequence[str]) -> list[str]:
    """Pytest's arguments with the tests that depend on the version of ComfyUI in place of all of them."""
    options = [entry for entry in arguments if not is_path(entry)]
    return [*ON_OLDER_HOSTS, *options] if HOST_TESTS in arguments else list(arguments)


def closing_line(files: Iterable[Path], lost: int = 0) -> str:
    """The sum of several runs, in the form in which pytest closes one; a run that left no results is an error."""
    keys = ("tests", "failures", "errors", "skipped", "time")
    suites = [suite for file in files for suite in ElementTree.parse(file).getroot().iter("testsuite")]
    total = {key: sum(float(suite.get(key) or 0) for suite in suites) for key in keys}
    total["tests"] += lost
    total["errors"] += lost
    passed = total["tests"] - total["failures"] - total["errors"] - total["skipped"]
    counts = {"failed": total["failures"], "passed": passed, "skipped": total["skipped"], "errors": total["errors"]}
    words = ", ".join(f"{count:.0f} {word}" for word, count in counts.items() if count)
    return f" {words or 'no tests ran'} in {total['time']:.2f}s ".center(80, "=")


def main(arguments: Sequence[str]) -> int:
    """Run the tests; returns pytest's exit status, of several runs the first bad one."""
    folders = comfyui_folders()
    if list(arguments) == ["--list"]:
        sys.stdout.write("".join(f"{folder}\n" for folder in folders))
        return 0
    everything = "--all" in arguments or are_chosen(arguments)
    alone, hosted = split([entry for entry in arguments if entry != "--all"])
    if not folders and hosted is not None:
        sys.stdout.write("No ComfyUI is found: the tests with it are left out; name one by COMFYUI_PATH.\n")
        sys.stdout.flush()
        hosted = None
    statuses: list[int] = []
    lost = 0
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(os.environ.get("TEST_RESULTS") or temporary)
        if alone is not None:
            options = [*markers(alone, everything), *processes(arguments)]
            statuses.append(run(Path(sys.executable), [*alone, *options], results / "alone.xml"))
        hosts: list[tuple[Path, Path]] = []
        for folder in folders if hosted is not None else []:
            try:
                hosts.append((folder, environment(folder)))
            except ValueError as error:
                sys.stdout.write(f"on_hosts.py: {error}\n")
                statuses.append(1)
                lost += 1
        if hosts and processes(arguments):
            # Models this small gain next to nothing from more threads.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        statuses += run_on_hosts(hosts, [*(hosted or []), *processes(arguments)], results, everything)
        lost += sum(not host_results(results, folder).is_file() for folder, _ in hosts)
        files = sorted(results.glob("*.xml"))
        if len(files) + lost > 1:
            sys.stdout.write(closing_line(files, lost) + "\n")
    bad = [status for status in statuses if status not in (0, NO_TESTS)]
    # A run that was killed has a negative one.
    return abs(bad[0]) if bad else min(statuses, default=NO_TESTS)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"on_hosts.py: {error}")
