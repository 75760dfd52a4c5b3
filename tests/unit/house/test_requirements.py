"""What is imported is declared, tests can be listed without ComfyUI, and installing moves nothing that is there."""

import ast
import re
import sys
from pathlib import Path

import on_hosts
from requirements import HOST_MODULES, HOST_PACKAGES, load_installer

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# Modules that do not have their package's name.
PACKAGE_OF = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "groundingdino": "groundingdino-py",
    "rotary_embedding_torch": "rotary-embedding-torch",
    "segment_anything_hq": "segment-anything-hq",
    "skvideo": "scikit-video",
    "xdist": "pytest-xdist",
}
IMPORTERS = ("import_module", "find_spec", "importorskip")


def declared() -> dict[str, list[str]]:
    """Requirements of pyproject.toml by list, read without a TOML module (Python 3.10 has none)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^([\w-]+) = \[\n(.*?)^\]", text, re.S | re.M)
    found = {name: re.findall(r'^    "([a-z0-9-]+>=[0-9.]+)"', body, re.M) for name, body in lists}
    return {name: lines for name, lines in found.items() if lines}


def imports_of(path: Path) -> set[str]:
    """First names of all absolute imports, inside functions and by importlib's and pytest's functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in IMPORTERS and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return {name.split(".")[0] for name in found}


def sources() -> list[Path]:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "output"]
    return [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]


def test_every_import_is_declared():
    packages = {line.split(">=")[0] for lines in declared().values() for line in lines}
    packages_of_ours = {path.parent.name for path in sources() if path.name == "__init__.py"}
    ours = {path.stem for path in sources()} | packages_of_ours | {"mask_guided_video"}
    wrong = {}
    for path in sources():
        known = set(sys.stdlib_module_names) | HOST_MODULES
        if path.is_relative_to(ROOT / "tests" / "comfy"):
            known |= HOST_PACKAGES
        for name in imports_of(path) - known:
            package = PACKAGE_OF.get(name, name.replace("_", "-"))
            if package not in packages and name not in ours:
                wrong.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert not wrong, f"declare these in pyproject.toml (and requirements.txt or install.py): {wrong}"


def test_imports_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "a.py").write_text(
        "import a.b\nfrom c.d import e\nfrom . import f\n"
        "def g():\n    import h\n    importlib.import_module('i.j')\n"
        "    pytest.importorskip('k')\n    x.find_spec(name)\n"
    )
    assert imports_of(tmp_path / "a.py") == {"a", "c", "h", "i", "k"}


def test_extras_are_those_of_the_installer():
    install, lists = load_installer(), declared()
    assert lists["guarded"] == list(install.GUARDED)
    assert lists["grounding-dino"] == list(install.GROUNDING_DINO)
    assert {name: tuple(lists[name]) for name in install.EXTRAS} == install.EXTRAS
    assert lists["test-comfyui"] == list(on_hosts.EXTRAS)
    assert {line.split(">=")[0] for line in install.all_extras()} <= set(install.OPTIONAL)
    others = {"dependencies", "guarded", "grounding-dino", "test", "test-comfyui", "comparison"}
    assert set(lists) == {*install.EXTRAS, *others}


def test_extras_are_named_by_the_errors_of_their_features():
    from mask_guided_video.missing_packages import EXTRA_OF

    named = {line.split(">=")[0]: name for name, lines in load_installer().EXTRAS.items() for line in lines}
    assert named == EXTRA_OF
