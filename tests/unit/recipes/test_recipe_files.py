"""Output appears complete or not at all."""

import os

import pytest

from mask_guided_video.recipes.files import staged_folder
from mask_guided_video.weight_files.writing import replacing


def test_staged_files_appear_at_the_end(tmp_path):
    out = tmp_path / "a" / "out"
    with staged_folder(out) as stage:
        (stage / "film.mp4").write_text("film")
        assert not (out / "film.mp4").exists()
    assert (out / "film.mp4").read_text() == "film"
    assert [path.name for path in out.iterdir()] == ["film.mp4"]


def test_interrupted_run_keeps_what_was_there(tmp_path):
    (tmp_path / "film.mp4").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path) as stage:
        (stage / "film.mp4").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "film.mp4").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_interrupted_run_leaves_no_new_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"), staged_folder(tmp_path / "file" / "out"):
        raise AssertionError("the block must not run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"), staged_folder(tmp_path):
        raise AssertionError("the block must not run")


def test_replacing(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
