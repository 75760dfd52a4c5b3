"""The installer's parts that need no network."""

import importlib.util
import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def install(root):
    spec = importlib.util.spec_from_file_location("install", root / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip(install, monkeypatch):
    """What pip was asked to install; names in ``fails`` cannot be."""
    tried, fails = [], set()

    def run(python, arguments):
        tried.append([word for word in arguments if ">=" in word or word.startswith("--no")])
        return int(any(install.package_name(word) in fails for word in arguments))

    monkeypatch.setattr(install, "pip_install", run)
    monkeypatch.setattr(install, "missing_in", lambda python, wanted: wanted)
    monkeypatch.setattr(install, "installed_in", lambda python: {"torch": "2.8.0", "peft": "0.1.0", "pip": "9"})
    return tried, fails


def test_report_changes_nothing_and_names_what_is_missing(install, capsys, monkeypatch, tmp_path):
    assert install.check() == 0
    assert "all requirements are installed" in capsys.readouterr().out
    (tmp_path / "requirements.txt").write_text("torch>=999\ngroundingdino-py>=999\nno-such-package>=1\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    assert install.check() == 0
    report = capsys.readouterr().out
    assert "missing: torch>=999" in report and "missing: no-such-package>=1" in report
    assert "without it: no reading GroundingDINO files" in report
    assert "Toybox weights missing: text_to_video, detector, segmenter" in report
    assert [path.name for path in tmp_path.iterdir()] == ["requirements.txt"]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("pytest>=1", True), ("pytest>=999", False), ("torch>=2.1", True), ("no-such-package>=0", False)],
)
def test_installed_versions_are_compared(install, requirement, expected):
    assert install.is_installed(requirement) is expected


def test_any_opencv_will_do_and_a_broken_one_is_told(install, monkeypatch, capsys):
    monkeypatch.setattr(install, "_version", {"opencv-contrib-python-headless": "4.10.0.84"}.get)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert install.is_installed("opencv-python>=4.7")
    assert install.check() == 0
    assert "--force-reinstall --no-deps opencv-contrib-python-headless==4.10.0.84" in capsys.readouterr().out
    monkeypatch.setattr(install, "_version", lambda name: None)
    assert not install.is_installed("opencv-python>=4.7")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert install.is_installed("opencv-python>=4.7")


def test_versions_compare_as_numbers(install):
    assert install._numbers("2.10.0+cu121") > install._numbers("2.9")
    assert install._numbers("4.50.0.dev0") >= install._numbers("4.50")


def test_missing_packages_of_another_python(install):
    assert install.missing_in(sys.executable, ["pytest>=1", "no-such-package>=1"]) == ["no-such-package>=1"]


def test_what_another_python_has(install):
    assert install.installed_in(sys.executable) == install.installed_here()
    assert "huggingface-hub" in install.installed_here()
    assert [install.normalised(name) for name in ("Foo_bar.baz", "zope..interface")] == [
        "foo-bar-baz",
        "zope-interface",
    ]


def test_active_environment_is_used(install, monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere")
    assert str(install.environment_python()) == sys.executable


def test_optional_package_costs_its_feature_only(install, pip, capsys):
    tried, fails = pip
    fails.add("scipy")
    install.install(sys.executable, ["torch>=1", "scipy>=1", "groundingdino-py>=1"])
    assert tried == [["torch>=1", "scipy>=1"], ["torch>=1"], ["scipy>=1"], ["--no-deps", "groundingdino-py>=1"]]
    assert "without it: no measuring of trackers" in capsys.readouterr().out


def test_required_package_that_fails_ends_the_installation(install, pip):
    pip[1].add("torch")
    with pytest.raises(SystemExit, match="could not be installed"):
        install.install(sys.executable, ["torch>=1"])


def test_what_is_installed_moves_only_when_it_was_asked_for(install, pip, monkeypatch, capsys):
    held = []

    def run(python, arguments):
        held.append((open(arguments[1], encoding="ascii").read().split(), arguments[2:]))
        return 0

    monkeypatch.setattr(install, "pip_install", run)
    assert install.add_missing(sys.executable, ["peft>=0.11", "einops>=0.7"]) == ["peft>=0.11"]
    assert "peft 0.1.0 stays as it is; peft>=0.11 is wanted" in capsys.readouterr().out
    assert install.add_missing(sys.executable, ["peft>=0.11"], update=True) == []
    assert held == [(["peft==0.1.0", "pip==9", "torch==2.8.0"], ["einops>=0.7"]), (["torch==2.8.0"], ["peft>=0.11"])]


def test_constraints_hold_versions_that_pip_can_read(install):
    with install.constraints({"torch": "2.8.0+cu128", "odd": "unknown", "a": "1.0.dev0"}) as (option, path):
        text = open(path, encoding="ascii").read()
    assert (option, text) == ("--constraint", "a==1.0.dev0\ntorch==2.8.0+cu128\n")


def test_a_python_that_is_not_comfyuis_is_left_alone(install, monkeypatch, capsys):
    monkeypatch.setattr(install, "_version", lambda name: None)
    monkeypatch.setattr(install, "add_missing", None)
    assert install.main([]) == 0 and install.main(["motion-tuning", "--dry-run"]) == 0
    assert "nothing was changed, as this Python has no torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "failed", "extras", "status"),
    [
        ([], [], [], 0),
        (["motion-tuning"], ["peft>=0.11"], ["accelerate>=0.30", "peft>=0.11"], 0),
        (["evaluation"], ["diffusers>=0.31"], ["scipy>=1.10"], 1),
    ],
)
def test_only_what_is_needed_decides_the_exit_status(install, monkeypatch, arguments, failed, extras, status):
    asked = []
    monkeypatch.setattr(install, "add_missing", lambda python, wanted, dry_run: asked.extend(wanted) or failed)
    assert install.main([*arguments, "--dry-run"]) == status
    assert asked == [*install.everything(), *extras]


def test_unknown_command_shows_the_help(root):
    done = subprocess.run([sys.executable, str(root / "install.py"), "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "install.py demo" in done.stdout


def test_a_dry_run_says_what_would_come(install, monkeypatch, capsys):
    def run(command, **options):
        with open(command[command.index("--report") + 1], "w") as file:
            json.dump({"install": [{"metadata": {"name": "Foo_Bar", "version": "1.2"}}]}, file)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.pip_install(sys.executable, ["--dry-run", "foo-bar>=1"]) == 0
    assert capsys.readouterr().out == "  would add: foo-bar==1.2\n"
