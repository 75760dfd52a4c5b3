"""How the tests are divided among the checkouts of ComfyUI."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import on_hosts
import pytest

ALONE = ["tests/unit", "tests/end_to_end"]
HOSTED = ["tests/comfy", "tests/end_to_end/benchmarks/test_benchmark_native_models.py"]


def make_checkout(folder: Path, version: str = "") -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "model_management.py").touch()
    if version:
        (folder / "comfyui_version.py").write_text(f'# written by a tool\n__version__ = "{version}"\n')
    return folder


def test_checkouts_are_named_or_lie_where_the_installer_puts_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert on_hosts.comfyui_folders() == []
    usual = make_checkout(tmp_path / "comfy" / "ComfyUI", "0.33.0")
    other = make_checkout(tmp_path / "other")
    assert on_hosts.comfyui_folders() == [usual.resolve()]
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(other), str(usual), ""]))
    assert on_hosts.comfyui_folders() == [other.resolve(), usual.resolve()]
    assert [on_hosts.comfyui_version(folder) for folder in (usual, other)] == ["0.33.0", "other"]
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(other), str(tmp_path)]))
    with pytest.raises(ValueError, match=f"COMFYUI_PATH names {tmp_path.resolve()}, which holds no ComfyUI"):
        on_hosts.comfyui_folders()


def test_requirements_are_read_without_comments():
    text = "torch\naiohttp>=3.11.8 # web\n\n# audio\ntorchaudio\n"
    assert on_hosts.comfyui_requirements(text) == ["torch", "aiohttp>=3.11.8", "torchaudio"]


@pytest.mark.parametrize(
    ("arguments", "alone", "hosted"),
    [
        ([], ALONE, HOSTED),
        (["tests", "-x"], [*ALONE, "-x"], [*HOSTED, "-x"]),
        (["-k", "nodes"], [*ALONE, "-k", "nodes"], [*HOSTED, "-k", "nodes"]),
        (["tests/end_to_end"], ["tests/end_to_end"], None),
        (
            ["tests/unit/attention_patches/kernels/test_rows.py", "-q"],
            ["tests/unit/attention_patches/kernels/test_rows.py", "-q"],
            None,
        ),
        (["./tests/comfy/nodes/test_nodes.py::test_x"], None, ["./tests/comfy/nodes/test_nodes.py::test_x"]),
        (["tests/unit", "tests/comfy"], ["tests/unit"], ["tests/comfy"]),
    ],
)
def test_arguments_are_divided(arguments, alone, hosted):
    assert on_hosts.split(arguments) == (alone, hosted)


@pytest.mark.parametrize(
    ("arguments", "everything", "browser", "expected"),
    [
        ([], False, True, ["-m", "not slow"]),
        (["-q"], False, False, ["-m", "not slow and not browser"]),
        ([], True, False, ["-m", "not browser"]),
        ([], True, True, []),
        (["-m", "slow"], False, False, []),
        (["-mslow"], False, True, []),
        (["--maxfail=1"], False, True, ["-m", "not slow"]),
    ],
)
def test_slow_tests_and_browsers_are_left_out_unless_asked_for(arguments, everything, browser, expected):
    assert on_hosts.markers(arguments, everything, browser) == expected


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["tests", "./tests/comfy/", "tests/unit", "-q"], False),
        (["-k", "nodes"], False),
        (["tests/end_to_end"], True),
        (["tests/unit", "tests/comfy/nodes/test_nodes.py::test_x"], True),
    ],
)
def test_whole_parts_of_the_suite_are_told_from_chosen_tests(arguments, chosen):
    assert on_hosts.are_chosen(arguments) is chosen


def test_processes_are_shared_out(monkeypatch):
    pytest.importorskip("xdist")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    by_file = ["--dist", "loadfile"]
    # Memory ends before the cores do.
    assert on_hosts.processes(["-q"]) == ["-n", "4", *by_file]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert on_hosts.processes([]) == ["-n", "2", *by_file]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert on_hosts.processes([]) == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    for own in ("-n0", "--numprocesses=8", "--dist=load", "--pdb", "tests/unit/house/test_house.py"):
        assert on_hosts.processes([own]) == []


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Two checkouts whose environments are this Python, and what was run; statuses and results are set by the test."""
    folders = [make_checkout(tmp_path / version, version) for version in ("0.20.1", "0.33.0")]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setattr(on_hosts, "environment", lambda folder: Path(sys.executable))
    monkeypatch.setenv("TEST_RESULTS", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    ran, statuses = [], {}

    def run(python, arguments, results, comfyui=None):
        ran.append((arguments, comfyui))
        numbers = 'tests="10" failures="1" errors="0" skipped="2" time="1.5"'
        results.write_text(f"<testsuites><testsuite {numbers} /></testsuites>")
        return statuses.get(comfyui and comfyui.name, 0)

    monkeypatch.setattr(on_hosts, "run", run)
    return ran, statuses, folders


def test_each_checkout_gets_its_run_and_the_last_line_is_the_sum(runs, capsys):
    ran, statuses, folders = runs
    assert on_hosts.main(["-q"]) == 0
    two = ["-n", "2", "--dist", "loadfile"] if importlib.util.find_spec("xdist") else []
    assert ran[0] == ([*ALONE, "-q", "-m", "not slow", *two], None)
    # The newest one runs all, the other one what depends on the version.
    old = [*on_hosts.ON_OLDER_HOSTS, "-q", *two, "-m", "not slow and not browser"]
    new = [*HOSTED, "-q", *two, "-m", "not slow"]
    assert ran[1:] == [(old, folders[0]), (new, folders[1])]
    assert all((on_hosts.ROOT / path.split("::")[0]).is_file() for path in on_hosts.ON_OLDER_HOSTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip("= ") == "3 failed, 21 passed, 6 skipped in 4.50s"
    for folder in folders:
        title = lines.index(f"The tests with ComfyUI {folder.name} in {folder}:")
        assert lines[title + 1].startswith("These are the ones that depend") == (folder == folders[0])


def test_all_is_everything_and_a_named_file_is_whole(runs):
    ran, _, folders = runs
    assert on_hosts.main(["--all"]) == 0
    two = ["-n", "2", "--dist", "loadfile"] if importlib.util.find_spec("xdist") else []
    assert [arguments for arguments, _ in ran[1:]] == [[*HOSTED, *two, "-m", "not browser"], [*HOSTED, *two]]
    assert ran[0][0][:2] == ALONE and not {"-m", "--all"} & set(ran[0][0])
    ran.clear()
    assert on_hosts.main(["tests/end_to_end/house"]) == 0
    assert ran == [(["tests/end_to_end/house"], None)]
    ran.clear()
    # What is named runs with every ComfyUI.
    assert on_hosts.main(["tests/comfy/nodes/test_nodes.py"]) == 0
    assert [arguments[0] for arguments, _ in ran] == ["tests/comfy/nodes/test_nodes.py"] * 2


def test_without_comfyui_its_tests_are_left_out_and_that_is_said(runs, monkeypatch, capsys):
    monkeypatch.setattr(on_hosts, "comfyui_folders", list)
    assert on_hosts.main(["-q", "-n0"]) == 0
    assert runs[0] == [([*ALONE, "-q", "-n0", "-m", "not slow"], None)]
    assert capsys.readouterr().out.startswith("No ComfyUI is found: the tests with it are left out")
    assert on_hosts.main(["tests/comfy"]) == on_hosts.NO_TESTS and len(runs[0]) == 1


@pytest.mark.parametrize(
    ("alone", "old", "new", "status"), [(0, 1, 0, 1), (5, 0, 5, 0), (5, 5, 5, 5), (0, 0, -9, 9), (2, 1, 0, 2)]
)
def test_one_bad_run_is_enough(runs, alone, old, new, status):
    runs[1].update({None: alone, "0.20.1": old, "0.33.0": new})
    assert on_hosts.main([]) == status
    assert len(runs[0]) == 3


def test_an_environment_that_cannot_be_made_fails_and_stops_no_other(runs, monkeypatch, capsys):
    def environment(folder):
        if folder.name == "0.20.1":
            raise ValueError("what ComfyUI 0.20.1 asks for could not be installed")
        return Path(sys.executable)

    monkeypatch.setattr(on_hosts, "environment", environment)
    assert on_hosts.main(["tests/comfy"]) == 1
    assert [comfyui for _, comfyui in runs[0]] == [runs[2][1]]
    lines = capsys.readouterr().out.splitlines()
    assert "ComfyUI 0.20.1 asks for could not be installed" in lines[0]
    assert lines[-1].strip("= ") == "1 failed, 7 passed, 2 skipped, 1 errors in 1.50s"


def test_a_wrong_folder_is_told_in_one_sentence(root, tmp_path):
    command = [sys.executable, str(root / "tests" / "on_hosts.py"), "--list"]
    done = subprocess.run(command, env={**os.environ, "COMFYUI_PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"on_hosts.py: COMFYUI_PATH names {tmp_path}")
    assert len(done.stderr.splitlines()) == 1
