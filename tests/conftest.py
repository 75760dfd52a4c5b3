"""Imports the package under its fixed name, and skips with a plain message what this machine cannot run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from on_hosts import OTHER_TESTS, comfyui_folders, comfyui_requirements

ROOT = Path(__file__).resolve().parent.parent
# Optional for ComfyUI itself, but not for the nodes that tests run.
COMFY_MODULES = ("scipy", "kornia", "spandrel", "pydantic")


def comfyui_folder() -> Path | None:
    """The ComfyUI checkout, the first where several are found; None when there is none."""
    return next(iter(comfyui_folders()), None)


def comfyui_problem() -> str:
    """Why tests with ComfyUI cannot run here; empty when they can."""
    try:
        folder = comfyui_folder()
    except ValueError as error:
        return str(error)
    if folder is None:
        return "no ComfyUI checkout at COMFYUI_PATH or ~/comfy/ComfyUI"
    asked = comfyui_requirements((folder / "requirements.txt").read_text(encoding="utf-8").split("#non essential")[0])
    names = [re.split(r"[^\w.-]", line)[0] for line in asked]
    missing = [name for name in names if not _is_installed(name)]
    missing += [name for name in COMFY_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return f"ComfyUI's requirements are not installed in this Python (missing: {', '.join(missing)})"
    return ""


def _is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def chromium_executable() -> Path | None:
    """A Chromium or Chrome: ``CHROMIUM_PATH``, else the first one on PATH; None when there is none."""
    named = os.environ.get("CHROMIUM_PATH")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    found = next((path for path in map(shutil.which, names) if path), None)
    return Path(found) if found else None


def browser_problem() -> str:
    """Why browser tests cannot run here; empty when they can."""
    if chromium_executable() is None:
        return "no Chromium on PATH or at CHROMIUM_PATH"
    if importlib.util.find_spec("playwright") is None:
        return "the playwright package is not installed"
    return comfyui_problem()


def gpu_problem() -> str:
    """Why GPU tests cannot run here; empty when they can."""
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


def _wants_comfy(config: pytest.Config) -> bool:
    """Importing ComfyUI takes seconds: not for a run of tests without it alone."""
    without = [ROOT / folder for folder in OTHER_TESTS]
    paths = [(Path(config.invocation_params.dir) / str(argument).split("::")[0]).resolve() for argument in config.args]
    return not paths or not all(any(path.is_relative_to(folder) for folder in without) for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    """Put ComfyUI on the path where there is one, then import the package as ``mask_guided_video``."""
    # `python -m pytest` puts the root on the path, where our folder `nodes` would hide ComfyUI's module of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]
    if _wants_comfy(config) and not comfyui_problem():
        sys.path.insert(0, str(comfyui_folder()))
        import torch
        from comfy.cli_args import args

        args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    bootstrap = importlib.util.module_from_spec(spec)
    sys.modules["bootstrap"] = bootstrap
    spec.loader.exec_module(bootstrap)
    bootstrap.import_package()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip marked tests whose machinery is missing, each with the reason."""
    checks = {"comfy": comfyui_problem, "browser": browser_problem, "gpu": gpu_problem}
    problems: dict[str, str] = {}
    for item in items:
        for marker, check in checks.items():
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in problems:
                problems[marker] = check()
            if problems[marker]:
                item.add_marker(pytest.mark.skip(reason=problems[marker]))


@pytest.fixture(scope="session")
def root() -> Path:
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def comfy_folder() -> Path:
    """The ComfyUI checkout; the test is skipped when there is none."""
    problem = comfyui_problem()
    if problem:
        pytest.skip(problem)
    return comfyui_folder()


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """A Chromium executable; the test is skipped when there is none."""
    problem = browser_problem()
    if problem:
        pytest.skip(problem)
    return chromium_executable()


@pytest.fixture(scope="module")
def tiny_video_model() -> Any:
    """One tiny random video model for all tests of a file."""
    from tiny_video_model import build_tiny_video_model

    return build_tiny_video_model()


@pytest.fixture(scope="session")
def tiny_video_model_builder() -> Callable:
    """Makes tiny random video models."""
    from tiny_video_model import build_tiny_video_model

    return build_tiny_video_model


@pytest.fixture(scope="session")
def cli(root: Path) -> Any:
    """The command line as a module."""
    spec = importlib.util.spec_from_file_location("cli", root / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def open_benchmark(root: Path) -> Iterator[Callable[[str], Any]]:
    """Import a script of benchmarks/ by its name, with what lies beside it within reach."""
    folder = root / "benchmarks"

    def load(name: str) -> Any:
        # Not by the plain name: helpers of other tests have the same.
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    sys.path.append(str(folder))
    yield load
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and the order of sums would depend on their number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """Files end at 1000 bytes in ``with small_files(1000)``, as on a full disk; not after, for pytest writes too."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(most: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited
