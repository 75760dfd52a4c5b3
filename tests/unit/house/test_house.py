"""The rules of the house: what may import what, how the sources are written, and that nothing is forgotten."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import house_rules as rules
import pytest
from house_rules import Source

ROOT = Path(__file__).resolve().parent.parent.parent.parent
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
SOURCES = [Source.read(path, ROOT) for path in TRACKED if path.suffix == ".py"]
PACKAGE = [source for source in SOURCES if source.folder in rules.FOLDERS]
TESTS = [source for source in SOURCES if source.folder == "tests"]
# Helpers of tests by the name that tests import them by.
HELPERS = {source.path.stem: source for source in TESTS if source.path.parts[1] == "support"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def check(rule: Callable[[Source], list[str]], sources: Iterable[Source]) -> None:
    """Every offence of every source, in one message."""
    offences = [offence for source in sources for offence in rule(source)]
    assert not offences, "\n".join(offences)


def test_imports_point_down():
    check(rules.upward_imports, PACKAGE)
    check(rules.mixed_rooms, PACKAGE)


def test_imports_are_relative():
    check(rules.absolute_names, PACKAGE)


def test_no_circles():
    offences = rules.circles(PACKAGE)
    assert not offences, "\n".join(offences)


def test_folders_can_be_surveyed():
    offences = rules.crowded_folders(source for source in SOURCES if source.folder != "tests")
    assert not offences, "\n".join(offences)


def test_comfyui_is_not_needed_below_the_nodes():
    check(rules.needless_comfyui, PACKAGE)


def test_heavy_modules_are_imported_in_functions():
    check(rules.heavy_imports, [source for source in PACKAGE if source.folder not in ("training", "nodes")])


def test_nodes_import_our_modules_on_top():
    check(rules.hidden_imports, [source for source in PACKAGE if source.folder == "nodes"])


def test_sources_are_ascii_and_do_not_print():
    check(rules.foreign_letters_and_prints, SOURCES)


def test_no_broad_except():
    check(rules.broad_excepts, PACKAGE)


def test_modules_and_public_names_have_docstrings():
    check(rules.missing_docstrings, PACKAGE)


def test_every_test_asserts():
    check(lambda source: rules.idle_tests(source, HELPERS), TESTS)


def test_tests_import_no_tests():
    check(rules.imports_of_tests, TESTS)


def test_slow_tests_are_where_they_belong():
    check(rules.misplaced_slow_tests, [source for source in TESTS if "house" not in source.path.parts])


def made_up(path: str, text: str = "") -> Source:
    return Source(PurePosixPath(path), text)


@pytest.mark.parametrize(
    ("rule", "path", "good", "bad", "message"),
    [
        pytest.param(
            *(rules.upward_imports, "perception/masks/x.py", "from ...attention_patches import y"),
            *("def f():\n    from ...nodes.z import y", "imports from ['nodes']; perception may use"),
            id="up, in a function",
        ),
        pytest.param(
            *(rules.upward_imports, "toybox/x.py", "from . import y", "from .. import training"),
            *("imports from ['training']; toybox may use []",),
            id="up, the folder itself",
        ),
        pytest.param(
            *(rules.mixed_rooms, "perception/tracking/x.py", "from ..boxes import y\nfrom .films import z"),
            *("from ..masks.paths import y", "imports from ['masks'], another room"),
            id="from room to room",
        ),
        pytest.param(
            *(rules.absolute_names, "recipes/x.py", "import torch", "import mask_guided_video.recipes"),
            *("['mask_guided_video'] by an absolute name",),
            id="absolute",
        ),
        pytest.param(
            *(rules.needless_comfyui, "host/x.py", "def f():\n    import comfy.utils", "import comfy.utils"),
            *("imports ['comfy'] of ComfyUI",),
            id="ComfyUI at module level",
        ),
        pytest.param(
            *(rules.needless_comfyui, "recipes/x.py", "import math", "def f():\n    import folder_paths"),
            *("imports ['folder_paths'] of ComfyUI",),
            id="ComfyUI where it is not",
        ),
        pytest.param(
            *(rules.heavy_imports, "perception/x.py", "def f():\n    import cv2"),
            *("try:\n    from cv2 import resize\nfinally:\n    pass", "imports ['cv2'] at module level"),
            id="heavy",
        ),
        pytest.param(
            *(rules.hidden_imports, "nodes/x.py", "from .y import z\ndef f():\n    import torch"),
            *("def f():\n    from .y import z", "of ours inside functions in lines [2]"),
            id="hidden",
        ),
        pytest.param(
            *(rules.foreign_letters_and_prints, "cli.py", "x = 'u'", "x = '\u00fc'", "not ASCII"),
            id="letters",
        ),
        pytest.param(
            *(rules.foreign_letters_and_prints, "cli.py", "x.print()", "\nprint(3)", "exec in lines [2]"),
            id="print",
        ),
        pytest.param(
            *(rules.broad_excepts, "nodes/x.py", "try:\n    f()\nexcept Exception:\n    g()\n    raise"),
            *("try:\n    f()\nexcept Exception:\n    g()", "every error in lines [3]"),
            id="broad except",
        ),
        pytest.param(
            *(
                rules.missing_docstrings,
                "nodes/x.py",
                '"""X."""\ndef _f(): ...',
                "def _f(): ...",
                "no module docstring",
            ),
            id="module without words",
        ),
        pytest.param(
            *(
                rules.missing_docstrings,
                "nodes/x.py",
                '"""X."""\ndef _f(): ...',
                '"""X."""\ndef f(): ...',
                "['f'] have",
            ),
            id="function without words",
        ),
        pytest.param(
            *(lambda source: rules.idle_tests(source, {}), "tests/test_x.py"),
            *("def test_x():\n    assert f()", "def test_x():\n    f()", "['test_x'] assert nothing"),
            id="idle",
        ),
        pytest.param(
            *(rules.imports_of_tests, "tests/unit/test_x.py", "from films import y"),
            *("def test_x():\n    from test_y import y", "imports from ['test_y']; put what they share"),
            id="a test from a test",
        ),
        pytest.param(
            *(rules.misplaced_slow_tests, "tests/unit/test_x.py", "x = 3"),
            *("@pytest.mark.slow\ndef test_x(): ...", "has slow tests; they belong in tests/end_to_end"),
            id="slow among the quick",
        ),
        pytest.param(
            *(rules.misplaced_slow_tests, "tests/end_to_end/test_x.py", "pytestmark = [pytest.mark.slow]"),
            *("@pytest.mark.slow\ndef test_x(): ...", "no pytestmark = pytest.mark.slow"),
            id="not slow as a whole",
        ),
    ],
)
def test_rules_can_fail(rule, path, good, bad, message):
    assert rule(made_up(path, good)) == []
    (offence,) = rule(made_up(path, bad))
    assert path in offence and message in offence


def test_a_helper_that_asserts_makes_a_test_of_it():
    test = made_up("tests/test_x.py", "from beside import holds\ndef test_x():\n    holds(3)")
    helper = made_up("tests/support/beside.py", "def holds(x):\n    assert x")
    assert rules.idle_tests(test, {"beside": helper}) == []
    assert rules.idle_tests(test, {"beside": made_up("tests/support/beside.py", "def holds(x):\n    return x")})


def test_circles_are_found():
    first = made_up("recipes/a.py", "if TYPE_CHECKING:\n    from .b import B")
    second = made_up("recipes/b.py", "def f():\n    from .films import c")
    third = made_up("recipes/films/c.py", "from ..a import A")
    outside = made_up("recipes/d.py", "from .a import A")
    assert rules.circles([first, second, outside]) == []
    found = rules.circles([first, second, third, outside])
    assert [offence.split()[0] for offence in found] == ["recipes.a", "recipes.b", "recipes.films.c"]


def test_crowded_folders_are_found():
    room = [made_up(f"recipes/{index}.py") for index in range(15)] + [made_up("recipes/__init__.py")]
    assert rules.crowded_folders(room) == []
    (offence,) = rules.crowded_folders([*room, made_up("recipes/x.py")])
    assert offence.startswith("recipes/ holds 16 modules")
    assert rules.crowded_folders(made_up(f"backbones/families/{index}.py") for index in range(16)) == []


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
    (package,) = [source for source in SOURCES if str(source.path) == "__init__.py"]
    for node in ast.walk(package.tree):
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


def test_every_node_has_help():
    pages = ROOT / "web" / "docs"
    silent = [
        node_id
        for node_id in node_ids()
        if not (pages / f"{node_id}.md").is_file() and not (pages / node_id / "en.md").is_file()
    ]
    assert not silent, f"{silent} have no help page."


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
