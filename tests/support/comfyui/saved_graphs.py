"""Workflows as the frontend saves them, and the form that the server's API takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """Inputs by name, of a node or of an option of a dynamic combo."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def options_of(specification: list[Any]) -> dict[str, Any]:
    return specification[1] if len(specification) > 1 else {}


def is_widget(specification: list[Any]) -> bool:
    kind = specification[0]
    return (isinstance(kind, list) or kind in WIDGETS) and not options_of(specification).get("forceInput")


def choices_of(specification: list[Any]) -> list[Any] | None:
    """What a combo lets one choose; None of an input of another kind."""
    kind, options = specification[0], options_of(specification)
    if isinstance(kind, list):
        return kind
    if kind == DYNAMIC:
        return [option["key"] for option in options["options"]]
    return options["options"] if kind == "COMBO" else None


def saved_names(node: dict[str, Any], info: dict[str, Any]) -> list[str | None]:
    """Whose values a saved node lists, by input; None is a widget that the server never sees."""
    names: list[str | None] = []
    for entry in node["inputs"]:
        if "widget" not in entry:
            continue
        name = entry["widget"]["name"]
        names.append(name)
        if options_of(inputs_of(info)[name]).get("control_after_generate"):
            names.append(None)
    return names


def saved_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Widget values of a saved node by input name."""
    values = zip(saved_names(node, info), node.get("widgets_values") or [], strict=False)
    return {name: value for name, value in values if name is not None}


def with_widget(workflow: dict[str, Any], object_info: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of a saved workflow in which all widgets of a name have another value."""
    changed = copy.deepcopy(workflow)
    for node in changed["nodes"]:
        names = saved_names(node, object_info[node["type"]]) if node["type"] in object_info else []
        if name in names:
            node["widgets_values"][names.index(name)] = value
    return changed


def later_widgets(inputs: dict[str, Any], values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Widgets that core has got since a node was saved, with what they begin with.

    Args:
        inputs: specifications by name.
        values: those that were saved.
        prefix: of names inside of a dynamic combo.
    """
    for name, specification in inputs.items():
        if not is_widget(specification):
            continue
        options, choices = options_of(specification), choices_of(specification)
        value = values.get(prefix + name, options.get("default", choices[0] if choices else None))
        if prefix + name not in values:
            yield prefix + name, value
        if specification[0] == DYNAMIC:
            chosen = next(option for option in options["options"] if option["key"] == value)
            yield from later_widgets(inputs_of({"input": chosen["inputs"]}), values, f"{prefix}{name}.")


def prompt_of(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A workflow that the frontend saved in the form that the server's API takes."""
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info:
            continue
        info = object_info[node["type"]]
        inputs = saved_values(node, info)
        inputs |= later_widgets(inputs_of(info), inputs)
        for entry in node["inputs"]:
            if entry.get("link") is not None:
                inputs[entry["name"]] = origin[entry["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
