"""Files are written whole or not at all, and what killed processes leave goes."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from mask_guided_video.weight_files import writing
from mask_guided_video.weight_files.writing import (
    LOCK,
    STAGE,
    NotWritten,
    check_room,
    check_writable,
    only_process,
    replacing,
    size_text,
    stage_in,
    write_tensors,
)

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(work):
    """Run something in a process that kills itself there, or ends."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


class TestFullDisks:
    def test_the_sentence_names_what_a_user_knows(self, tmp_path, small_files):
        with small_files(1000), pytest.raises(NotWritten) as caught, stage_in(tmp_path) as stage:
            with replacing(stage / "film.mp4") as file:
                file.write_bytes(bytes(5000))
        text = str(caught.value)
        assert text.startswith(f"'film.mp4' cannot be written to '{tmp_path}' (File too large); make room there")
        assert STAGE not in text and names(tmp_path) == []

    def test_tensors_too(self, tmp_path, small_files):
        message = r"'a.safetensors' cannot be written to .* \(File too large\)"
        with small_files(1000), pytest.raises(OSError, match=message):
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1000)}, {})
        assert names(tmp_path) == []

    def test_what_was_there_stays(self, tmp_path, small_files):
        (tmp_path / "a.txt").write_text("old")
        with small_files(1000), pytest.raises(NotWritten), replacing(tmp_path / "a.txt") as file:
            file.write_bytes(bytes(5000))
        assert (tmp_path / "a.txt").read_text() == "old"

    def test_errors_of_other_files_stay_theirs(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "a.txt") as file:
            file.write_text((tmp_path / "b" / "elsewhere").read_text())

    def test_room_in_readable_numbers(self, tmp_path, monkeypatch):
        usage = type("Usage", (), {"free": 140 * 1024})
        monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
        hidden = tmp_path / f"{STAGE}abc" / "rounds"
        message = f"'{tmp_path}/rounds' has room for 140 KiB and the rounds take 1.5 MiB; free some"
        with pytest.raises(OSError, match=message):
            check_room(hidden, 1536 * 1024, "the rounds")
        check_room(hidden, 1000, "the rounds")

    def test_a_real_full_disk(self, tmp_path):
        if not hasattr(os, "geteuid") or os.geteuid() or os.system(f"mount -t tmpfs -o size=40k tmpfs {tmp_path}"):
            pytest.skip("only where this user may mount a small disk")
        try:
            with pytest.raises(NotWritten, match=r"\(No space left on device\); make room there"):
                write_tensors(tmp_path / "m.safetensors", {"a": torch.zeros(100_000)}, {})
            assert names(tmp_path) == []
        finally:
            os.system(f"umount {tmp_path}")

    @pytest.mark.parametrize(
        ("size", "text"),
        [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KiB"), (140 * 1024, "140 KiB"), (2**40, "1.0 TiB")],
    )
    def test_sizes(self, size, text):
        assert size_text(size) == text


class TestNames:
    @pytest.mark.parametrize("name", ["a" * 300, "a\0b", "file/a", "b" * 300 + "/a"])
    def test_what_no_file_can_be_is_said_before(self, tmp_path, name):
        (tmp_path / "file").write_text("")
        with pytest.raises(NotWritten, match="cannot be written to .* choose another name or folder"):
            check_writable(tmp_path / name)
        assert names(tmp_path) == ["file"]

    def test_a_folder_in_its_place(self, tmp_path):
        (tmp_path / "a.mp4").mkdir()
        with pytest.raises(NotWritten, match=r"\(it is a folder\)"):
            check_writable(tmp_path / "a.mp4")

    def test_a_trial_leaves_nothing(self, tmp_path):
        (tmp_path / "there").mkdir()
        check_writable(tmp_path / "there" / "deep" / "folder" / "a.mp4")
        assert names(tmp_path) == ["there"] and names(tmp_path / "there") == []

    def test_tensors_are_as_readable_as_other_files(self, tmp_path):
        (tmp_path / "plain").write_text("")
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"kind": "x"})
        assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(2))


class TestKilledProcesses:
    @fork
    def test_what_they_leave_goes_with_the_next(self, tmp_path):
        def work():
            with stage_in(tmp_path) as stage, replacing(stage / "film.mp4") as file:
                file.write_bytes(b"half")
                kill_myself()

        assert killed(work) == signal.SIGKILL and len(names(tmp_path)) == 1
        with replacing(tmp_path / "a.txt") as file:
            file.write_text("whole")
        assert names(tmp_path) == ["a.txt"]

    def test_what_living_ones_work_in_stays(self, tmp_path):
        with stage_in(tmp_path) as stage:
            (stage / "film.mp4").write_bytes(b"half")
            with stage_in(tmp_path):
                pass
            assert (stage / "film.mp4").read_bytes() == b"half"
        assert names(tmp_path) == []

    def test_stages_of_older_versions_go_once_they_are_old(self, tmp_path):
        for name in ("old", "new"):
            (tmp_path / f"{STAGE}{name}").mkdir()
        os.utime(tmp_path / f"{STAGE}old", (0, time.time() - 1000))
        with stage_in(tmp_path):
            pass
        assert names(tmp_path) == [f"{STAGE}new"]


class TestOnlyProcess:
    def test_the_second_is_refused_and_nothing_stays(self, tmp_path):
        folder = tmp_path / "rounds"
        with only_process(folder, "makes rounds"):
            with pytest.raises(ValueError, match="another run makes rounds in .* right now"):
                with only_process(folder, "makes rounds"):
                    raise AssertionError("the block must not run")
            assert names(folder) == [LOCK]
        assert names(tmp_path) == []

    @fork
    def test_a_killed_one_holds_nothing(self, tmp_path):
        def work():
            with only_process(tmp_path, "makes rounds"):
                kill_myself()

        assert killed(work) == signal.SIGKILL and names(tmp_path) == [LOCK]
        with only_process(tmp_path, "makes rounds"):
            (tmp_path / "a").write_text("")
        assert names(tmp_path) == ["a"]

    def test_file_systems_without_locks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writing, "_lock", lambda file: None)
        with only_process(tmp_path, "makes rounds"), stage_in(tmp_path) as stage, stage_in(tmp_path):
            assert stage.is_dir()
