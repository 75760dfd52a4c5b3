"""The rules of the house: what may import what, how the sources are written, and that nothing is forgotten."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent
FOLDERS = (
    "attention_patches",
    "weight_files",
    "prompt_text",
    "backbones",
    "host",
    "video_models",
    "perception",
    "recipes",
    "commands",
    "nodes",
    "training",
    "toybox",
)
# Which of our folders a folder may import from, besides itself: imports point down only.
ALLOWED = {
    "attention_patches": set(),
    "weight_files": set(),
    "prompt_text": {"attention_patches"},
    "backbones": {"attention_patches", "prompt_text", "video_models"},
    "host": {"attention_patches", "backbones", "prompt_text", "video_models"},
    "video_models": {"attention_patches", "weight_files", "prompt_text", "toybox"},
    "perception": {"attention_patches", "weight_files", "prompt_text", "missing_packages"},
    "recipes": {"attention_patches", "weight_files", "prompt_text", "video_models", "perception"},
    "commands": {"perception", "recipes"},
    "toybox": set(),
    "nodes": {
        *("attention_patches", "backbones", "host", "video_models", "perception", "recipes", "toybox", "training"),
    },
    "training": {
        *("attention_patches", "weight_files", "video_models", "perception", "recipes", "toybox", "missing_packages"),
    },
}
# The rooms of perception stand apart on what lies beside them in its root; this one draws with another.
PERCEPTION_ROOMS = {"detection": set(), "segmentation": set(), "tracking": set(), "masks": set(), "pictures": {"masks"}}
# Folders that run with ComfyUI and may import it; elsewhere the pack works without.
COMFY_FOLDERS = {"backbones", "host", "nodes"}
COMFY_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "server"}
# Slow to import, or missing where an installation failed: imported by the function that needs them.
HEAVY_MODULES = {
    "transformers",
    "diffusers",
    "cv2",
    "av",
    "segment_anything",
    "groundingdino",
    "tokenizers",
    "comfy",
    "peft",
}
HEAVY_MODULES |= {"accelerate", "matplotlib"}
MAX_WEIGHTS = 40e6


def tracked() -> list[Path]:
    """Files of the repository that exist; all files where git or its history is missing."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path for path in ROOT.rglob("*") if not {".venv", "output", ".git"} & set(path.relative_to(ROOT).parts)
        ]
    return [path for path in paths if path.is_file()]


TRACKED = tracked()
SOURCES = [path for path in TRACKED if path.suffix == ".py"]
PACKAGE_SOURCES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in FOLDERS]

# Helpers of tests by the name that tests import them by.
HELPERS = {path.stem: path for path in SOURCES if path.relative_to(ROOT).parts[:2] == ("tests", "support")}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_folders(path: Path) -> set[str]:
    """First part of every relative import, counted from the root: ``from ..perception.boxes`` -> ``perception``."""
    here = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - (node.level - 1)]
            parts = (*base, *(node.module.split(".") if node.module else ()))
            found.update({parts[0]} if parts else {alias.name for alias in node.names})
    return found


def absolute_imports(nodes) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def module_level(body: list[ast.stmt]):
    """Statements that run on import: not in functions, not for type checkers only."""
    for node in body:
        if is_type_checking(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from module_level(getattr(node, field, []))


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name)
def test_imports_point_down(path):
    folder = path.relative_to(ROOT).parts[0]
    wrong = imported_folders(path) - ALLOWED[folder] - {folder}
    assert not wrong, f"{name(path)} imports from {sorted(wrong)}; {folder} may use {sorted(ALLOWED[folder])}."


@pytest.mark.parametrize("room", PERCEPTION_ROOMS)
def test_rooms_of_perception_stand_apart(room):
    sources = [path for path in PACKAGE_SOURCES if path.relative_to(ROOT).parts[:2] == ("perception", room)]
    assert sources
    for path in sources:
        nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level == 2]
        used = {(node.module or "").split(".")[0] for node in nodes} & set(PERCEPTION_ROOMS)
        assert used <= PERCEPTION_ROOMS[room], f"{name(path)} imports from {sorted(used - PERCEPTION_ROOMS[room])}."


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name)
def test_imports_are_relative(path):
    found = absolute_imports(ast.walk(tree(path)))
    wrong = found & {*FOLDERS, "mask_guided_video", "bootstrap"}
    assert not wrong, f"{name(path)} imports {sorted(wrong)} by an absolute name; import relatively."


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name)
def test_comfyui_is_not_needed_below_the_nodes(path):
    if path.relative_to(ROOT).parts[0] in COMFY_FOLDERS:
        found = absolute_imports(module_level(tree(path).body)) if path.relative_to(ROOT).parts[0] != "nodes" else set()
    else:
        found = absolute_imports(ast.walk(tree(path)))
    assert not found & COMFY_MODULES, f"{name(path)} imports {sorted(found & COMFY_MODULES)}."


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE_SOURCES if path.relative_to(ROOT).parts[0] not in ("training", "nodes")], ids=name
)
def test_heavy_modules_are_imported_in_functions(path):
    found = absolute_imports(module_level(tree(path).body))
    assert not found & HEAVY_MODULES, f"{name(path)} imports {sorted(found & HEAVY_MODULES)} at module level."


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sources_are_ascii_and_do_not_print(path):
    path.read_bytes().decode("ascii")
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    wrong = [node.lineno for node in calls if node.func.id in ("print", "eval", "exec")]
    assert not wrong, f"{name(path)} calls print, eval or exec in lines {wrong}."


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name)
def test_no_broad_except(path):
    broad = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
    ]
    assert not broad, f"{name(path)} swallows every error in lines {broad}; name the errors."


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name)
def test_modules_and_public_names_have_docstrings(path):
    module = tree(path)
    if not module.body:
        return
    assert ast.get_docstring(module), f"{name(path)} has no module docstring."
    if path.relative_to(ROOT).parts[0] in ("training",):
        return
    missing = [
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing, f"{name(path)}: {missing} have no docstring."


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name.startswith("test_")], ids=name)
def test_every_test_asserts(path):
    def checks(node: ast.AST) -> bool:
        if isinstance(node, ast.Assert):
            return True
        called = node.func if isinstance(node, ast.Call) else None
        text = ast.unparse(called) if called is not None else ""
        # Warnings made into errors are a check too.
        return "assert" in text or text in ("pytest.raises", "pytest.warns", "warnings.simplefilter")

    def helpers_in(file: Path) -> set[str]:
        return {
            node.name
            for node in ast.walk(tree(file))
            if isinstance(node, ast.FunctionDef)
            and not node.name.startswith("test_")
            and any(map(checks, ast.walk(node)))
        }

    helpers = helpers_in(path)
    for node in ast.walk(tree(path)):
        beside = HELPERS.get(node.module) if isinstance(node, ast.ImportFrom) else None
        if beside is not None:
            helpers |= helpers_in(beside) & {entry.name for entry in node.names}
    idle = [
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(map(checks, ast.walk(node)))
        and not any(isinstance(inner, ast.Name) and inner.id in helpers for inner in ast.walk(node))
        and "decode" not in ast.unparse(node)
    ]
    assert not idle, f"{name(path)}: {idle} assert nothing."


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def toml_list(key: str) -> list[str]:
    """A list of strings of pyproject.toml, read without a TOML module (Python 3.10 has none)."""
    found = re.search(rf"^{key} = \[(.*?)^\]", pyproject(), re.S | re.M)
    return re.findall(r'^\s+"([^"]+)"', found.group(1), re.M)


def install_module():
    spec = importlib.util.spec_from_file_location("house_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_requirements_are_plain_and_equal_to_the_project():
    lines = (ROOT / "requirements.txt").read_text(encoding="ascii").splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line) for line in lines)
    assert lines == toml_list("dependencies")
    assert tuple(toml_list("test")) == install_module().TEST_EXTRAS


def test_project_metadata():
    text = pyproject()
    for expected in (
        'name = "mask-guided-video"',
        'license = { file = "LICENSE" }',
        'requires-python = ">=3.10"',
        'PublisherId = "mask-guided-video"',
        'DisplayName = "Mask-Guided Video"',
        'requires-comfyui = ">=0.20.1"',
    ):
        assert expected in text
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"', text, re.M).group(1)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").strip().startswith("Apache License")


def node_ids() -> list[str]:
    """Ids in the literal NODE_CLASS_MAPPINGS of the root, as ComfyUI Manager reads them."""
    for node in ast.walk(tree(ROOT / "__init__.py")):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "NODE_CLASS_MAPPINGS" and isinstance(node.value, ast.Dict):
            keys = [key.value for key in node.value.keys]
            if keys:
                return keys
    return []


def test_node_ids():
    ids = node_ids()
    assert ids, "the root __init__.py has no literal NODE_CLASS_MAPPINGS with node ids."
    assert all(re.fullmatch(r"MGV_[A-Za-z0-9]+", entry) for entry in ids)


@pytest.mark.parametrize("node_id", node_ids())
def test_every_node_has_help(node_id):
    page = ROOT / "web" / "docs" / f"{node_id}.md"
    assert page.is_file() or (ROOT / "web" / "docs" / node_id / "en.md").is_file(), f"{node_id} has no help page."


def test_nodes_import_our_modules_on_top():
    """None of them is slow to import, so a node module shows at once what it needs."""
    hidden = [
        f"{name(path)}:{inner.lineno}"
        for path in PACKAGE_SOURCES
        if path.relative_to(ROOT).parts[0] == "nodes"
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
        if isinstance(inner, ast.ImportFrom) and inner.level
    ]
    assert not hidden, f"imports of ours inside functions: {hidden}; move them to the top of the module."


def test_every_workflow_has_a_thumbnail_and_known_nodes():
    workflows = [path for path in TRACKED if path.suffix == ".json" and path.parent == ROOT / "workflows"]
    assert workflows, "there is no workflow in workflows/."
    for path in workflows:
        assert path.with_suffix(".jpg").is_file(), f"{name(path)} has no thumbnail."
        types = {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
        ours = {entry for entry in types if entry.startswith("MGV_")}
        assert ours and ours <= set(node_ids()), f"{name(path)} uses unknown nodes {sorted(ours - set(node_ids()))}."


def test_every_json_file_is_valid():
    files = [path for path in TRACKED if path.suffix == ".json"]
    for path in files:
        json.loads(path.read_text(encoding="utf-8"))
    assert files


def test_weights_stay_small():
    sizes = {
        name(path): path.stat().st_size for path in TRACKED if path.suffix in (".safetensors", ".bin", ".pt", ".pth")
    }
    assert sum(sizes.values()) <= MAX_WEIGHTS, f"weights take {sum(sizes.values()) / 1e6:.1f} MB: {sizes}"


def test_package_imports_without_comfyui_and_heavy_modules():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bootstrap; package = bootstrap.import_package();"
        "import mask_guided_video.recipes.mask_refine.settings;"
        "heavy = {'transformers', 'diffusers', 'cv2', 'av', 'comfy'} & set(sys.modules);"
        "assert not heavy, heavy; assert package.NODE_CLASS_MAPPINGS == {}"
    )
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and result.stderr == ""


def test_ruff():
    pytest.importorskip("ruff")
    for arguments in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--no-cache", str(ROOT)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stdout + result.stderr
