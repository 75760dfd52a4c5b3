"""What people are told where a package is missing."""

import logging
import sys

import numpy as np
import pytest

from mask_guided_video import missing_packages
from mask_guided_video.training import evaluate_tracking
from mask_guided_video.training.motion import architectures as motion_architectures
from mask_guided_video.training.motion import loop as motion_loop
from mask_guided_video.training.motion.settings import MotionSettings


def test_commands_name_the_python_and_the_extra(root, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/with a space/python")
    assert missing_packages.install_command("cv2") == f'"/with a space/python" {root / "install.py"}'
    assert missing_packages.install_command("peft").endswith("install.py motion-tuning")


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("peft", "motion-tuning", lambda: motion_architectures.LoraArchitecture().prepare(None)),
        ("scipy.optimize", "evaluation", lambda: evaluate_tracking.assign(np.eye(2))),
        ("accelerate", "motion-tuning", lambda: motion_loop._accelerator(MotionSettings(), None).__enter__()),
    ],
)
def test_features_name_their_package_and_its_command(monkeypatch, package, extra, use):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.split(".")[0]
    with pytest.raises(ImportError, match=rf"needs the package {name}; run: .*install\.py {extra}$"):
        use()


def test_original_detectors_name_the_command(monkeypatch):
    from mask_guided_video.perception.detection import grounding_dino_original

    # Other tests may have imported parts of it already.
    for name in ("groundingdino", "groundingdino.models.GroundingDINO.groundingdino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"need the package groundingdino-py.*; run: .*install\.py, or use a model"):
        grounding_dino_original.package_with(None, None).__enter__()


def test_the_command_line_says_it_in_one_line(cli, monkeypatch, capsys):
    def run(options):
        raise missing_packages.missing_package("motion tuning", "accelerate")

    monkeypatch.setattr(cli.module("commands.refine"), "run", run)
    assert cli.main(["refine", "--prompt", "a", "--object", "b"]) == cli.WRONG_INPUT
    assert "cli.py: motion tuning needs the package accelerate; run: " in capsys.readouterr().err

    def need(options):
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setattr(cli.module("commands.refine"), "run", need)
    assert cli.main(["refine", "--prompt", "a", "--object", "b"]) == cli.WRONG_INPUT
    error = capsys.readouterr().err
    assert error.startswith("cli.py: the package 'cv2' is not installed; run: ") and error.endswith("install.py\n")


def test_loading_the_nodes_warns_of_what_they_need(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        missing_packages.warn_of_missing_packages()
        assert caplog.messages == []
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        missing_packages.warn_of_missing_packages()
    assert caplog.messages == [
        f"Mask-Guided Video needs cv2 and diffusers; run: {missing_packages.install_command('cv2')}"
    ]
