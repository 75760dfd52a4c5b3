"""Tests can be listed without ComfyUI, and installing moves nothing that is there."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from requirements import HOST_MODULES, HOST_PACKAGES, load_installer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_the_original_detector_imports_what_the_installer_adds_and_nothing_else():
    """Each package is needed, and those of groundingdino-py that are left out are not."""
    pytest.importorskip("groundingdino")
    packages = [line.split(">=")[0] for line in load_installer().GROUNDING_DINO[1:]]
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import torch, transformers\n"
        "sys.modules.update(dict.fromkeys(['supervision', 'comfy']))\n"
        "def works():\n"
        "    try:\n        import groundingdino.models.GroundingDINO.groundingdino\n"
        "    except ImportError:\n        return False\n"
        "    finally:\n"
        "        for name in [name for name in sys.modules if name.split('.')[0] == 'groundingdino']:\n"
        "            del sys.modules[name]\n"
        "    return True\n"
        "def without(name):\n"
        "    gone = {entry: sys.modules.pop(entry) for entry in list(sys.modules) if entry.split('.')[0] == name}\n"
        "    sys.modules[name] = None\n"
        "    try:\n        return works()\n"
        "    finally:\n        del sys.modules[name]; sys.modules.update(gone)\n"
        "print([name for name in sys.argv[1:] if without(name)], works())\n"
    )
    command = [sys.executable, "-c", code, *packages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.split("\n")[0] == "[] True", done.stdout + done.stderr


def test_tests_are_listed_without_comfyui(tmp_path):
    """No module of the tests needs ComfyUI, what it brings, or an extra before a test runs."""
    absent = HOST_MODULES - {"nodes"} | HOST_PACKAGES | {"playwright", "peft", "accelerate", "groundingdino", "timm"}
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')));"
        "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', 'tests']))"
    )
    variables = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    variables.pop("COMFYUI_PATH", None)
    command = [sys.executable, "-c", code, ",".join(sorted(absent))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    listed = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert len([name for name in listed if name.startswith("tests/comfy/")]) > 50


# Packages in the environment of somebody who uses ComfyUI, with what they ask for where that restrains others.
USERS_PACKAGES = {
    "torch": ("2.8.0", []),
    "torchvision": ("0.23.0", ["torch==2.8.0"]),
    "torchaudio": ("2.8.0", ["torch==2.8.0"]),
    "numpy": ("1.26.4", []),
    "opencv-python-headless": ("4.10.0.84", ["numpy>=1.21.2"]),
    "transformers": (
        "4.57.3",
        [
            *("filelock", "huggingface-hub<1.0,>=0.34.0", "numpy>=1.17", "packaging>=20.0", "pyyaml>=5.1"),
            *("regex!=2019.12.17", "requests", "tokenizers<=0.23.0,>=0.22.0", "safetensors>=0.4.3", "tqdm>=4.27"),
        ],
    ),
    "safetensors": ("0.6.2", []),
    "tokenizers": ("0.22.1", ["huggingface-hub<2.0,>=0.16.4"]),
    "huggingface-hub": ("0.36.0", ["filelock", "fsspec>=2023.5.0", "packaging>=20.9", "pyyaml>=5.1", "requests"]),
    "pillow": ("11.3.0", []),
    "av": ("16.0.1", []),
    "tqdm": ("4.67.1", []),
    "einops": ("0.8.1", []),
    "scipy": ("1.15.3", ["numpy<2.5,>=1.23.5"]),
    **{name: (version, []) for name, version in (("packaging", "25.0"), ("pyyaml", "6.0.3"), ("regex", "2025.9.18"))},
    **{name: (version, []) for name, version in (("filelock", "3.19.1"), ("fsspec", "2025.9.0"), ("psutil", "7.1.0"))},
    "requests": ("2.32.5", ["charset-normalizer<4,>=2", "idna<4,>=2.5", "urllib3<3,>=1.21.1", "certifi>=2017.4.17"]),
    **{name: (version, []) for name, version in (("charset-normalizer", "3.4.3"), ("idna", "3.10"))},
    **{name: (version, []) for name, version in (("urllib3", "2.5.0"), ("certifi", "2025.8.3"))},
    "typing-extensions": ("4.15.0", []),
}


@pytest.fixture(scope="module")
def users_python(tmp_path_factory) -> Path:
    """The Python of an environment that holds the metadata of ``USERS_PACKAGES`` and nothing else."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = next(folder.rglob("site-packages"))
    for name, (version, needs) in USERS_PACKAGES.items():
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {n}" for n in needs),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "RECORD").touch()
    tried = pip(python, "--dry-run", "--no-deps", "--ignore-installed", "einops")
    if tried.returncode:
        pytest.skip(f"pip reaches no registry ({(tried.stderr.strip() or 'no message').splitlines()[-1]})")
    return python


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_requirements_move_nothing(users_python, tmp_path):
    done = pip(users_python, "--dry-run", "--report", str(tmp_path / "r.json"), "-r", str(ROOT / "requirements.txt"))
    assert done.returncode == 0, done.stderr
    coming = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["install"]
    assert [entry["metadata"]["name"] for entry in coming] == ["segment-anything"]


def would_add(python: Path, *words: str) -> dict[str, str]:
    done = subprocess.run([str(python), str(ROOT / "install.py"), "--dry-run", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not be installed" not in done.stdout and "stays as it is" not in done.stdout, done.stdout
    return dict(re.findall(r"^  would add: (\S+)==(\S+)$", done.stdout, re.M))


@pytest.mark.parametrize("extras", [(), ("motion-tuning", "evaluation")])
def test_the_installer_moves_nothing(users_python, extras):
    coming = would_add(users_python, *extras)
    assert not set(coming) & set(USERS_PACKAGES), "these would move"
    assert not {name for name in coming if "opencv" in name} and "supervision" not in coming
    install = load_installer()
    named = [*install.GUARDED, *install.GROUNDING_DINO, *(line for name in extras for line in install.EXTRAS[name])]
    assert {line.split(">=")[0] for line in named} - set(coming) - {"opencv-python", "scipy"} == set()


def test_opencv_comes_where_there_is_none_and_fits_the_numpy_that_is_there(users_python):
    info = next(users_python.parent.parent.rglob("opencv_python_headless-*.dist-info"))
    hidden = info.rename(info.with_suffix(".away"))
    try:
        coming = would_add(users_python)
    finally:
        hidden.rename(info)
    assert coming["opencv-python"].startswith("4.") and not set(coming) & set(USERS_PACKAGES)
