"""The rules of the house as functions: each takes a source and names every offence, so that a test lists all."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

# Which of our folders a folder may import from, besides itself: imports point down only.
ALLOWED: dict[str, set[str]] = {
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
FOLDERS = tuple(ALLOWED)
# The rooms of perception stand apart on what lies beside them in its root; this one draws with another.
PERCEPTION_ROOMS: dict[str, set[str]] = {
    **{"detection": set(), "segmentation": set(), "tracking": set(), "masks": set(), "pictures": {"masks"}},
}
# Folders that run with ComfyUI and may import it; elsewhere the pack works without.
COMFY_FOLDERS = {"backbones", "host", "nodes"}
COMFY_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "server"}
# Slow to import, or missing where an installation failed: imported by the function that needs them.
HEAVY_MODULES = {
    *("transformers", "diffusers", "cv2", "av", "segment_anything", "groundingdino", "tokenizers", "comfy"),
    *("peft", "accelerate", "matplotlib"),
}
MOST_MODULES = 15
# One module for each node, one for each family of models: their number is that of the things themselves.
CROWDED = {"nodes", "backbones/families"}


@dataclass(frozen=True)
class Source:
    """One Python file: its path below the root, and its text."""

    path: PurePosixPath
    text: str

    @classmethod
    def read(cls, path: Path, root: Path) -> Source:
        """The file at ``path`` in the repository at ``root``."""
        return cls(PurePosixPath(path.relative_to(root).as_posix()), path.read_text(encoding="utf-8"))

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, filename=str(self.path))

    @property
    def folder(self) -> str:
        """The first part of the path."""
        return self.path.parts[0]

    @property
    def module(self) -> str:
        """``perception/masks/paths.py`` -> ``perception.masks.paths``; a package's ``__init__`` is the package."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def relative_imports(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """(Parts of the module counted from the root, imported name) of every relative import, wherever it stands."""
        here = self.path.parts[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = here[: len(here) - (node.level - 1)]
                module = (*base, *(node.module.split(".") if node.module else ()))
                for alias in node.names:
                    yield module, alias.name


def absolute_imports(nodes: Iterable[ast.AST]) -> set[str]:
    """First part of every module that these statements import by an absolute name."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def module_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: not in functions, not for type checkers only."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from module_level(getattr(node, field, []))


def upward_imports(source: Source) -> list[str]:
    """Imports from a folder that is not below the source's own."""
    used = {module[0] if module else name for module, name in source.relative_imports()}
    wrong = used - ALLOWED[source.folder] - {source.folder}
    allowed = sorted(ALLOWED[source.folder])
    return [f"{source.path} imports from {sorted(wrong)}; {source.folder} may use {allowed}."] if wrong else []


def mixed_rooms(source: Source) -> list[str]:
    """Imports of one room of perception from another."""
    if source.folder != "perception" or source.path.parts[1] not in PERCEPTION_ROOMS:
        return []
    room = source.path.parts[1]
    used = {module[1] if len(module) > 1 else name for module, name in source.relative_imports()
            if not module or module[0] == "perception"}  # fmt: skip
    wrong = used & set(PERCEPTION_ROOMS) - PERCEPTION_ROOMS[room] - {room}
    return [f"{source.path} imports from {sorted(wrong)}, another room of perception."] if wrong else []


def absolute_names(source: Source) -> list[str]:
    """Imports of our own folders by an absolute name."""
    wrong = absolute_imports(ast.walk(source.tree)) & {*FOLDERS, "mask_guided_video", "bootstrap"}
    return [f"{source.path} imports {sorted(wrong)} by an absolute name; import relatively."] if wrong else []


def needless_comfyui(source: Source) -> list[str]:
    """Imports of ComfyUI where the pack works without it, or at module level below the nodes."""
    if source.folder == "nodes":
        return []
    nodes = module_level(source.tree.body) if source.folder in COMFY_FOLDERS else ast.walk(source.tree)
    wrong = absolute_imports(nodes) & COMFY_MODULES
    return [f"{source.path} imports {sorted(wrong)} of ComfyUI."] if wrong else []


def heavy_imports(source: Source) -> list[str]:
    """Imports at module level of what should wait for the function that needs it."""
    wrong = absolute_imports(module_level(source.tree.body)) & HEAVY_MODULES
    return [f"{source.path} imports {sorted(wrong)} at module level."] if wrong else []


def hidden_imports(source: Source) -> list[str]:
    """Imports of our modules inside functions: none of them is slow, and at the top they show what a module needs."""
    lines = [
        inner.lineno
        for function in ast.walk(source.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
        if isinstance(inner, ast.ImportFrom) and inner.level
    ]
    if not lines:
        return []
    return [f"{source.path} has imports of ours inside functions in lines {sorted(set(lines))}; move them to the top."]


def circles(sources: Iterable[Source]) -> list[str]:
    """Groups of modules that import each other in a circle; imports in functions and for type checkers count too."""
    modules = {source.module: source for source in sources}
    graph: dict[str, set[str]] = {}
    for name, source in modules.items():
        targets = {(".".join(module), ".".join((*module, entry))) for module, entry in source.relative_imports()}
        # `from .films import visits` asks for the module visits, where there is one, else for a name of films.
        asked = {inner if inner in modules else outer for outer, inner in targets}
        graph[name] = asked & set(modules) - {name}
    back = {name: sorted(other for other in asked if name in _reached(graph, [other])) for name, asked in graph.items()}
    return [f"{name} stands in a circle: it imports {', '.join(others)}." for name, others in back.items() if others]


def _reached(graph: Mapping[str, set[str]], start: Iterable[str]) -> set[str]:
    """All that is imported from ``start`` on, directly or not."""
    found: set[str] = set()
    open_ends = list(start)
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += graph[name]
    return found


def crowded_folders(sources: Iterable[Source]) -> list[str]:
    """Folders of more modules than one can survey."""
    folders = Counter(str(source.path.parent) for source in sources if source.path.name != "__init__.py")
    return [
        f"{folder}/ holds {count} modules, more than {MOST_MODULES}; divide it into folders."
        for folder, count in folders.items()
        if count > MOST_MODULES and folder not in CROWDED
    ]


def foreign_letters_and_prints(source: Source) -> list[str]:
    """Letters outside ASCII, and calls of print, eval or exec."""
    found = [] if source.text.isascii() else [f"{source.path} has letters that are not ASCII."]
    calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    lines = [node.lineno for node in calls if node.func.id in ("print", "eval", "exec")]
    return [*found, *([f"{source.path} calls print, eval or exec in lines {lines}."] if lines else [])]


def broad_excepts(source: Source) -> list[str]:
    """Handlers that swallow every error."""
    lines = [
        node.lineno
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
    ]
    return [f"{source.path} swallows every error in lines {lines}; name the errors."] if lines else []


def missing_docstrings(source: Source) -> list[str]:
    """Modules, and their public functions and classes, without a docstring."""
    if not source.tree.body:
        return []
    found = [] if ast.get_docstring(source.tree) else [f"{source.path} has no module docstring."]
    missing = [
        node.name
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    # Scripts of training are read from their command line, not called.
    if missing and source.folder != "training":
        found.append(f"{source.path}: {missing} have no docstring.")
    return found


def _checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    text = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    # Warnings made into errors are a check too.
    return "assert" in text or text in ("pytest.raises", "pytest.warns", "warnings.simplefilter")


def checking_helpers(source: Source) -> set[str]:
    """Functions of a source, other than tests, that assert something."""
    return {
        node.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_") and any(map(_checks, ast.walk(node)))
    }


def idle_tests(source: Source, helpers: Mapping[str, Source]) -> list[str]:
    """Tests that assert nothing, neither themselves nor through a helper; ``helpers`` are modules by plain name."""
    checking = checking_helpers(source)
    for node in ast.walk(source.tree):
        beside = helpers.get(node.module or "") if isinstance(node, ast.ImportFrom) else None
        if beside is not None:
            checking |= checking_helpers(beside) & {entry.name for entry in node.names}
    idle = [
        node.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(map(_checks, ast.walk(node)))
        and not any(isinstance(inner, ast.Name) and inner.id in checking for inner in ast.walk(node))
    ]
    return [f"{source.path}: {idle} assert nothing."] if idle else []


def misplaced_slow_tests(source: Source) -> list[str]:
    """Files of tests/end_to_end that are not marked slow as a whole, and slow tests of tests/unit."""
    marked = "pytest.mark.slow" in source.text
    whole = any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "pytest.mark.slow" in ast.unparse(node.value)
        for node in source.tree.body
    )
    part = source.path.parts[1]
    if part == "end_to_end" and source.path.name.startswith("test_") and not whole:
        return [f"{source.path} has no pytestmark = pytest.mark.slow, which all of tests/end_to_end has."]
    return [f"{source.path} has slow tests; they belong in tests/end_to_end."] if part == "unit" and marked else []


def imports_of_tests(source: Source) -> list[str]:
    """Imports from a module of tests, which only finds them as long as both lie where they do."""
    found = {module for module in absolute_imports(ast.walk(source.tree)) if module.startswith("test_")}
    return [f"{source.path} imports from {sorted(found)}; put what they share into tests/support."] if found else []
