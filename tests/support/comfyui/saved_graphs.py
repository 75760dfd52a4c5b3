"""Workflows as the frontend saves them, and the form that the server's API takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
# In a subgraph: where the links of its own inputs come from.
OUTSIDE = -10


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """Inputs by name, of a node or of an option of a dynamic combo."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def options_of(specification: list[Any]) -> dict[str, Any]:
    return specification[1] if len(specification) > 1 else {}


def is_widget(specification: list[Any]) -> bool:
    kind, options = specification[0], options_of(specification)
    # Inputs of several types name the one that their widget has.
    has_one = isinstance(kind, list) or kind in WIDGETS or options.get("widgetType") in WIDGETS
    return has_one and not options.get("forceInput")


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


def graphs_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """A saved workflow and its subgraphs, each with its links as the workflow itself lists them."""
    known = subgraphs_of(workflow).values()
    inner = [{**graph, "links": [_listed(link) for link in graph["links"]]} for graph in known]
    return [workflow, *inner]


def subgraphs_of(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The subgraphs of a saved workflow by their number, which is the type of the nodes that stand for them."""
    return {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}


def nodes_in(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a saved workflow, those in subgraphs too, but for the nodes that stand for subgraphs."""
    known = subgraphs_of(workflow)
    return [node for graph in graphs_of(workflow) for node in graph["nodes"] if node["type"] not in known]


def _listed(link: dict[str, Any]) -> list[Any]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [link[key] for key in keys]


def with_widget(workflow: dict[str, Any], object_info: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of a saved workflow in which all widgets of a name have another value."""
    changed = copy.deepcopy(workflow)
    for node in nodes_in(changed):
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


@dataclass(frozen=True)
class _Scope:
    """A graph in its place.

    Attributes:
        graph: one of ``graphs_of``.
        known: subgraphs by number.
        prefix: before the numbers of its nodes in the prompt.
        outside: the graph around it, None of the workflow itself.
        holder: the node that stands for it there.
    """

    graph: dict[str, Any]
    known: dict[str, dict[str, Any]]
    prefix: str = ""
    outside: _Scope | None = None
    holder: dict[str, Any] | None = None

    def inside(self, node: dict[str, Any]) -> _Scope:
        """What a node stands for."""
        return _Scope(self.known[node["type"]], self.known, f"{self.prefix}{node['id']}:", self, node)

    def source(self, number: int) -> Any:
        """What comes through a link: node and output as the server takes them, or the value of a widget outside."""
        _, origin, slot, *_ = next(link for link in self.graph["links"] if link[0] == number)
        if origin == OUTSIDE:
            assert self.outside is not None and self.holder is not None
            entry = self.holder["inputs"][slot]
            if entry["link"] is not None:
                return self.outside.source(entry["link"])
            own = [other["name"] for other in self.holder["inputs"] if "widget" in other]
            return self.holder["widgets_values"][own.index(entry["name"])]
        node = next(node for node in self.graph["nodes"] if node["id"] == origin)
        if node["type"] not in self.known:
            return [f"{self.prefix}{origin}", slot]
        inner = self.inside(node)
        return inner.source(inner.graph["outputs"][slot]["linkIds"][0])

    def nodes(self) -> Iterator[tuple[_Scope, dict[str, Any]]]:
        """All nodes in it, those of subgraphs in their places, but for the nodes that stand for subgraphs."""
        for node in self.graph["nodes"]:
            if node["type"] in self.known:
                yield from self.inside(node).nodes()
            else:
                yield self, node


def prompt_of(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A workflow that the frontend saved in the form that the server's API takes."""
    first, *inner = graphs_of(workflow)
    prompt = {}
    for scope, node in _Scope(first, {graph["id"]: graph for graph in inner}).nodes():
        if node["type"] not in object_info:
            continue
        info = object_info[node["type"]]
        inputs = saved_values(node, info)
        inputs |= later_widgets(inputs_of(info), inputs)
        for entry in node["inputs"]:
            if entry.get("link") is not None:
                inputs[entry["name"]] = scope.source(entry["link"])
        prompt[f"{scope.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}
    return prompt
