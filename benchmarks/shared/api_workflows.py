"""Workflows in the form of ComfyUI's API: finding nodes by id or title, and setting their inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Workflow = dict[str, Any]
# Inputs that are looked for where only a node is named, best first.
INPUTS: dict[str, tuple[str, ...]] = {
    "prompt": ("text", "prompt", "value", "string", "text_positive"),
    "subject": ("phrases", "label", "value", "text", "string"),
    "masks": ("file", "video", "image", "value"),
    "seed": ("seed", "noise_seed", "value"),
    "guide": ("strength",),
    "prefix": ("filename_prefix",),
}
# Keys under which output nodes list their files.
FILES = ("images", "gifs", "videos", "video")


def read_workflow(path: Path) -> Workflow:
    """Read a workflow in the API's form: nodes by id, each with ``class_type`` and ``inputs``.

    Raises:
        ValueError: it cannot be read, or is in the form that the frontend saves.
    """
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the workflow {str(path)!r} cannot be read ({error}); give a JSON file.") from error
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise ValueError(f"{path.name!r} is a workflow as it is saved; export it for the API: File, Export (API).")
    nodes = workflow.values() if isinstance(workflow, dict) else [None]
    if not workflow or not all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        raise ValueError(f"{path.name!r} is no workflow for the API; export one: File, Export (API).")
    return workflow


def find_node(workflow: Workflow, name: str) -> str:
    """The id of a node that is named by its id or its title.

    Raises:
        ValueError: none or several; the message lists them.
    """
    if name in workflow:
        return name
    found = [number for number, node in workflow.items() if title_of(node) == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the nodes {', '.join(found)} have the title {name!r}; give the id of one of them.")
    listed = ", ".join(f"{number} {title_of(node)!r}" for number, node in workflow.items())
    raise ValueError(f"there is no node {name!r}; there are {listed}.")


def title_of(node: dict[str, Any]) -> str:
    """What a node is called in the frontend, or its class."""
    return str(node.get("_meta", {}).get("title") or node["class_type"])


def find_input(workflow: Workflow, target: str, role: str) -> tuple[str, str]:
    """A node and its input.

    Args:
        workflow: see ``read_workflow``.
        target: a node's id or title, or one of these with ``.`` and the name of an input.
        role: one of ``INPUTS``, whose names are tried where the target names no input.

    Raises:
        ValueError: no such node or input, or one that is connected to another node.
    """
    head, _, tail = target.rpartition(".")
    named = [number for number, node in workflow.items() if head and head in (number, title_of(node))]
    if target not in workflow and named and any(tail in workflow[number]["inputs"] for number in named):
        number, name = find_node(workflow, head), tail
    else:
        number = find_node(workflow, target)
        inputs = workflow[number]["inputs"]
        name = next((name for name in INPUTS[role] if name in inputs), "")
        if not name:
            raise ValueError(
                f"node {target!r} has the inputs {', '.join(inputs) or 'none'}, and none of {', '.join(INPUTS[role])}; "
                f"name the one for {role}, as in {target}.INPUT."
            )
    value = workflow[number]["inputs"].get(name)
    if isinstance(value, list):
        raise ValueError(
            f"input {name!r} of node {target!r} comes from node {value[0]} ({title_of(workflow[str(value[0])])}); "
            "name that node instead."
        )
    return number, name


def with_inputs(workflow: Workflow, values: Sequence[tuple[tuple[str, str], Any]]) -> Workflow:
    """A copy in which inputs, as ``find_input`` gives them, have other values."""
    changed = copy.deepcopy(workflow)
    for (number, name), value in values:
        changed[number]["inputs"][name] = value
    return changed


def film_entry(outputs: dict[str, Any], suffixes: Sequence[str], node: str | None = None) -> dict[str, str]:
    """The one video that a run has made.

    Args:
        outputs: files by node.
        suffixes: of videos, such as ``.mp4``.
        node: whose video is meant; None takes the only one.

    Raises:
        ValueError: none or several; the message says what there is.
    """
    entries = [
        (number, entry)
        for number, output in outputs.items()
        if node in (None, number)
        for kind in FILES
        for entry in output.get(kind, [])
        if isinstance(entry, dict) and "filename" in entry
    ]
    films = [(number, entry) for number, entry in entries if Path(entry["filename"]).suffix.lower() in suffixes]
    if len(films) == 1:
        return films[0][1]
    if films:
        listed = ", ".join(f"{entry['filename']} of node {number}" for number, entry in films)
        raise ValueError(f"the workflow makes several videos ({listed}); choose one with --output-node.")
    listed = ", ".join(entry["filename"] for _, entry in entries[:5]) or "nothing"
    raise ValueError(f"the workflow makes no video (it makes {listed}); end it with Save Video.")
