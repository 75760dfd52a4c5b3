"""Types are checked where they are written: the engine, what reads prompts, and the families of models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Rooms without a type error; a room that gets there is added.
CHECKED = ("attention_patches", "backbones", "prompt_text")


def type_errors(root: Path, folder: Path, rooms: tuple[str, ...]) -> list[str]:
    """Errors of mypy in some rooms of a checkout, which is read under the package's fixed name in an empty folder."""
    try:
        (folder / "mask_guided_video").symlink_to(root, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"this system makes no links to folders ({error})")
    packages = [word for room in rooms for word in ("-p", f"mask_guided_video.{room}")]
    options = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "mypy", *options, *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@pytest.mark.slow
def test_rooms_have_no_type_errors(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    errors = type_errors(root, tmp_path, CHECKED)
    assert not errors, "\n".join(errors)


@pytest.mark.slow
def test_errors_are_found(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "checkout" / "room").mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").write_text("[tool.mypy]\n", encoding="utf-8")
    (tmp_path / "checkout" / "room" / "wrong.py").write_text("def size() -> int:\n    return 'one'\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (error,) = type_errors(tmp_path / "checkout", tmp_path / "empty", ("room",))
    assert "wrong.py:2" in error and "int" in error
