"""The supported models are named in the registry, and everything else reads them there or is checked against it."""

import ast
import re
from pathlib import Path

from mask_guided_video.backbones.registry import FAMILIES, supported_models

ROOT = Path(__file__).resolve().parent.parent.parent.parent
HELP = ROOT / "web" / "docs"
NAMES = [family.name for family in FAMILIES]
# The word by which each family is known in a sentence.
WORDS = {re.split(r"[ -]", name)[0] for name in NAMES}
# More of them together are a list, which is out of date when there is another family.
EXAMPLES = 3


def tables(page: str) -> dict[str, dict[str, list[str]]]:
    """The other cells of every row by the first one, for every heading of a help page."""
    found: dict[str, dict[str, list[str]]] = {}
    heading = ""
    for line in (HELP / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("|") and not line.startswith("|---"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(heading, {})[first] = others
    return found


def words_in(text: str) -> set[str]:
    return {word for word in WORDS if re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", text)}


def test_supported_models_are_the_families():
    assert supported_models() == ", ".join(NAMES)
    assert supported_models(FAMILIES[1:3]) == f"{NAMES[1]}, {NAMES[2]}"


def test_the_help_of_patch_attention_has_a_row_for_each_family():
    rows = list(tables("MGV_PatchAttention.md")["Models"])
    assert rows[1:] == NAMES


def test_the_help_of_free_long_knows_how_long_their_clips_are():
    rows = tables("MGV_FreeLong.md")["The models' own lengths"]
    for family in FAMILIES:
        row = rows.get(family.name) or next(row for name, row in rows.items() if name.startswith(f"{family.name} "))
        assert int(re.match(r"\d+", row[0])[0]) == family.trained_frames, family.name


def test_nodes_list_no_models_by_hand():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "nodes").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(words_in(node.value)) > EXAMPLES
    ]
    assert not wrong, f"lists of models in {wrong}; take them from backbones.registry.supported_models()."


def test_help_pages_list_no_models_by_hand():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(HELP.glob("*.md"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(words_in(line)) > EXAMPLES
    ]
    assert not wrong, f"lists of models in {wrong}; name the table in the help of Patch Attention instead."
