"""The installer's parts that need no network."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def install(root):
    spec = importlib.util.spec_from_file_location("install", root / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_versions_compare_as_numbers(install):
    assert install._numbers("2.10.0+cu121") > install._numbers("2.9")
    assert install._numbers("4.50.0.dev0") >= install._numbers("4.50")


def test_missing_packages_of_another_python(install):
    assert install.missing_in(sys.executable, ["pytest>=1", "no-such-package>=1"]) == ["no-such-package>=1"]


def test_active_environment_is_used(install, monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere")
    assert str(install.environment_python()) == sys.executable


def test_optional_package_costs_its_feature_only(install, monkeypatch, capsys):
    tried = []

    def pip(python, arguments):
        tried.append(list(arguments))
        return int("groundingdino-py>=1" in arguments)

    monkeypatch.setattr(install, "pip_install", pip)
    monkeypatch.setattr(install, "missing_in", lambda python, wanted: wanted)
    install.install(sys.executable, ["torch>=1", "groundingdino-py>=1"])
    assert tried == [["torch>=1", "groundingdino-py>=1"], ["torch>=1"], ["groundingdino-py>=1"]]
    assert "no reading GroundingDINO files" in capsys.readouterr().out


def test_required_package_that_fails_ends_the_installation(install, monkeypatch):
    monkeypatch.setattr(install, "pip_install", lambda python, arguments: 1)
    monkeypatch.setattr(install, "missing_in", lambda python, wanted: wanted)
    with pytest.raises(SystemExit, match="could not be installed"):
        install.install(sys.executable, ["torch>=1"])


def test_unknown_command_shows_the_help(root):
    done = subprocess.run([sys.executable, str(root / "install.py"), "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "install.py demo" in done.stdout


def test_requirements_of_comfyui_leave_torch_alone(install, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert install.comfyui_requirements() == []
    lines = "torch\ntorchsde\ntorchaudio\ntorchvision>=0.1\n\n# audio\naiohttp>=3.11.8 # web\ntorch>=2\n"
    (tmp_path / "requirements.txt").write_text(lines)
    assert install.comfyui_requirements() == ["torchsde", "aiohttp>=3.11.8"]
