"""The README is short, and what README, docs/ and CONTRIBUTING say of files, nodes, workflows and modes is so."""

import ast
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, make_mode
from mask_guided_video.attention_patches.guidance.patch import guided_steps

ROOT = Path(__file__).resolve().parent.parent.parent.parent
README, CONTRIBUTING, MODES_PAGE = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "modes.md"
FEW_STEPS_PAGE = ROOT / "docs" / "few_steps.md"
NODES_PAGE = ROOT / "docs" / "nodes.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_BYTES = 8192
MAX_ANIMATION_BYTES = 1_500_000
FENCE = re.compile(r"^```.*?^```$", re.S | re.M)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Targets of all links and pictures inside the repository."""
    found = LINK.findall(FENCE.sub("", text_of(page)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def rows(page: Path) -> list[list[str]]:
    """Cells of every line of every table."""
    lines = [line for line in text_of(page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def entries(page: Path) -> set[str]:
    """What the cells of a page's tables hold, apart by commas, without backticks."""
    return {entry.strip(" `") for row in rows(page) for cell in row for entry in cell.split(",")}


def display_names() -> list[str]:
    """Display names of the nodes, read from the literal mapping."""
    for node in ast.walk(ast.parse(text_of(ROOT / "__init__.py"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.value.values:
            if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "NODE_DISPLAY_NAME_MAPPINGS":
                return [value.value for value in node.value.values]
    return []


def workflows() -> set[str]:
    return {path.stem for path in (ROOT / "workflows").glob("*.json")}


def mentioned_paths(page: Path) -> Iterator[tuple[str, list[Path]]]:
    """Paths in backticks and in commands, each with the places where it may be.

    A path is what ends in a slash, or in the suffix of a source or of a text, and has no placeholder. It may be told
    from the folder that its line names first.
    """
    for line in text_of(page).splitlines():
        words = re.findall(r"`([^`\s]+)`", line)
        words += re.findall(r"python (?!-m )(\S+\.py)", line)
        known = [word for word in words if (ROOT / word).is_dir()]
        for word in words:
            if re.fullmatch(r"[\w./-]+(/|\.(py|md|json|toml|txt))", word):
                yield word, [ROOT / word, *(ROOT / folder / word for folder in known[:1])]


def ignored(path: str) -> bool:
    """Whether ``.comfyignore`` keeps a file out of the published package."""
    lines = text_of(ROOT / ".comfyignore").split()
    patterns = [line.rstrip("/") for line in lines if not line.startswith("#")]
    return any(path.startswith(f"{pattern}/") or fnmatch.fnmatch(path, pattern) for pattern in patterns)


def test_readme_is_short():
    size = len(README.read_bytes())
    assert size <= MAX_README_BYTES, f"README.md has {size} bytes; move what is more than {MAX_README_BYTES} to docs/."


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{name(page)} has links that lead nowhere: {broken}"


def test_readme_links_every_page():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(README)}
    missing = [name(page) for page in PAGES if page != README and page not in linked]
    assert not missing, f"README.md has no link to {missing}."


@pytest.mark.parametrize("page", [README, NODES_PAGE], ids=name)
def test_every_workflow_and_node_stands_in_a_table(page):
    missing = (workflows() | set(display_names())) - entries(page)
    assert workflows() and display_names()
    assert not missing, f"{sorted(missing)} stand in no table of {name(page)}."


def test_tables_name_no_workflow_that_is_not_there():
    templates = {row[0].strip("`, ") for row in rows(NODES_PAGE) if row[0].startswith("`")}
    assert templates == workflows()


def test_every_mode_has_a_row():
    named = {row[0].strip("`") for row in rows(MODES_PAGE) if len(row) == 7 and row[0].startswith("`")}
    assert set(MODES) == named, f"{sorted(set(MODES) ^ named)}: a mode without a row in {name(MODES_PAGE)}, or no mode."


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_in_the_repository_exist(page):
    inside = {path.name for path in ROOT.iterdir()}
    missing = [
        word
        for word, places in mentioned_paths(page)
        if not any(place.exists() for place in places) and (page == CONTRIBUTING or word.split("/")[0] in inside)
    ]
    assert not missing, f"{name(page)} names files that are not there: {missing}"


def test_contributing_maps_every_folder():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    missing = {folder for folder in folders if f"`{folder}/`" not in text_of(CONTRIBUTING)}
    assert folders and not missing, f"CONTRIBUTING.md does not say what is in {sorted(missing)}."


def test_what_the_readme_shows_is_published():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(README))
    left_out = [path for path in shown if ignored(path)]
    assert shown and not left_out, f".comfyignore leaves out {left_out}, which README.md shows."
    assert ignored("tests/conftest.py") and not ignored("nodes/video.py")


def test_animation_is_small():
    sizes = {name(path): path.stat().st_size for path in (ROOT / "media").glob("*.gif")}
    assert sizes and max(sizes.values()) <= MAX_ANIMATION_BYTES, sizes


def test_steps_that_modes_guide_are_those_of_their_windows() -> None:
    told: dict[str, list[str]] = {}
    for first, *steps in rows(FEW_STEPS_PAGE):
        told.update({mode: steps for mode in re.findall(r"`(\w+)`", first) if len(steps) == 3})
    assert told.keys() == MODES.keys()
    for mode, steps in told.items():
        guide = Guide(torch.ones(1, 1, 4, 4), make_mode(mode))
        for count, said in zip((4, 8, 25), steps, strict=True):
            first, last, _ = guided_steps(guide, [step / count for step in range(count)])
            assert said == (f"{first}" if first == last else f"{first} to {last}"), (mode, count)
