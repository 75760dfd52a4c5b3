"""The bundled workflows: how they are read and made small, and what can be said of each without running it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from saved_graphs import OUTSIDE, choices_of, graphs_of, inputs_of, is_widget, nodes_in, options_of, subgraphs_of
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent.parent
STAND_INS = {
    "UNETLoader": "StandInModel",
    "CLIPLoader": "StandInClip",
    "DualCLIPLoader": "StandInClip",
    "VAELoader": "StandInVae",
    "CheckpointLoaderSimple": "StandInCheckpoint",
    "ControlNetLoader": "StandInControlNet",
    "LoraLoaderModelOnly": "StandInLora",
    "LTXAVTextEncoderLoader": "StandInClip",
    "LTXVAudioVAELoader": "StandInSoundVae",
    "LatentUpscaleModelLoader": "StandInUpscaler",
    "ADE_AnimateDiffLoaderGen1": "StandInMotion",
}
PERCEPTION = ("MGV_LoadGroundingDINO", "MGV_LoadSAM")
# Combos that list what lies in the user's model folders.
FILE_WIDGETS = (
    "unet_name",
    "clip_name",
    "clip_name1",
    "clip_name2",
    "vae_name",
    "ckpt_name",
    "model_name",
    "sd_checkpoint",
    "control_net_name",
    "lora_name",
    "text_encoder",
)
# Widgets that nodes of core have got since the graphs were saved, which they take by themselves.
LATER = {"CreateVideo": {"bit_depth"}}
# The type of inputs and outputs that take the type of what is connected.
MATCHING = "COMFY_MATCHTYPE_V3"
# In a subgraph: where the links to its own outputs go.
GIVEN_OUT = -20


def read(name: str) -> dict[str, Any]:
    """A bundled workflow as the frontend saved it."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(prompt: dict[str, Any], kind: str) -> list[str]:
    """Numbers of the nodes of a kind."""
    return [number for number, node in prompt.items() if node["class_type"] == kind]


def only(values: Iterable[Any]) -> Any:
    """The one that there is."""
    (value,) = values
    return value


def skip_unless_known(name: str, info: dict[str, Any]) -> None:
    """Skip where this ComfyUI lacks a node of a workflow: models that came later."""
    missing = {node["type"] for node in nodes_in(read(name))} - set(info) - {"MarkdownNote"}
    if any(not kind.startswith("MGV_") for kind in missing):
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(missing))}")


def stand_in(node: dict[str, Any], info: dict[str, Any], family: str, seed: int) -> None:
    """Put a loader of tiny random models in the place of a loader.

    Args:
        node: of a prompt; is changed.
        info: of the server's nodes.
        family: of the models.
        seed: of the weights.
    """
    kind = STAND_INS[node["class_type"]]
    if node["class_type"] == "VAELoader" and "audio" in node["inputs"]["vae_name"]:
        kind = "StandInSoundVae"
    known = inputs_of(info[kind])
    assert info[kind]["output"] == info[node["class_type"]]["output"]
    kept = {key: value for key, value in node["inputs"].items() if key in known}
    own = {key: value for key, value in (("family", family), ("seed", seed)) if key in known}
    node["class_type"], node["inputs"] = kind, {**kept, **own}


def save_latents(prompt: dict[str, Any], source: Iterable[Any], number: str, sound: str | None = None) -> None:
    """Add nodes that save latents.

    Args:
        prompt: is changed.
        source: node and output of the latents.
        number: of the new node.
        sound: of the new node that saves the sound, where the latents hold a video and its sound.
    """
    latents = list(source)
    if sound is not None:
        parts = f"parts_of_{number}"
        prompt[parts] = {"class_type": "LTXVSeparateAVLatent", "inputs": {"av_latent": latents}}
        prompt[sound] = {"class_type": "SaveLatent", "inputs": {"samples": [parts, 1], "filename_prefix": sound}}
        latents = [parts, 0]
    prompt[number] = {"class_type": "SaveLatent", "inputs": {"samples": latents, "filename_prefix": number}}


def saved_sound(server: Any, run: Any, number: str) -> float:
    """How many seconds of sound a ``SaveVideo`` of a run has written; 0 where there is none."""
    import av

    with av.open(str(server.path_of(run.outputs[number]["images"][0]))) as file:
        return sum(
            frame.samples / frame.sample_rate for stream in file.streams.audio[:1] for frame in file.decode(stream)
        )


def saved_latents(server: Any, run: Any, number: str) -> Tensor:
    """What a ``SaveLatent`` of a run has saved."""
    from safetensors.torch import load_file

    return load_file(server.path_of(run.outputs[number]["latents"][0]))["latent_tensor"]


def texts(run: Any, prompt: dict[str, Any]) -> list[str]:
    """What the ``PreviewAny`` nodes of a run show."""
    return [run.outputs[number]["text"][0] for number in nodes_of(prompt, "PreviewAny")]


def assert_nodes_are_core_and_ours(name: str, info: dict[str, Any]) -> None:
    """Every node comes from the core, from us or from AnimateDiff Evolved, and says so."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    nodes = nodes_in(read(name))
    assert "MarkdownNote" in {node["type"] for node in nodes}
    for node in nodes:
        if node["type"] == "MarkdownNote":
            continue
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        source = info[node["type"]]["python_module"]
        if node["type"].startswith("MGV_"):
            assert (properties["cnr_id"], properties["ver"]) == ("mask-guided-video", version)
        elif node["type"].startswith("ADE_") and name.startswith("animatediff"):
            assert properties["cnr_id"] == "comfyui-animatediff-evolved" and properties["ver"]
        else:
            assert properties["cnr_id"] == "comfy-core" and properties["ver"]
            assert source == "nodes" or source.startswith("comfy_extras."), node["type"]


def assert_links_match(name: str, info: dict[str, Any]) -> None:
    """Links join outputs and inputs of one type, and no required input is left open."""
    workflow = read(name)
    known = subgraphs_of(workflow)
    for graph in graphs_of(workflow):
        nodes = {node["id"]: node for node in graph["nodes"]}
        used = set()
        for number, origin, output, target, place, kind in graph["links"]:
            if origin == OUTSIDE:
                assert number in graph["inputs"][output]["linkIds"]
            else:
                source = nodes[origin]
                assert number in source["outputs"][output]["links"]
                assert _gives(source, output, known, info) in (kind, MATCHING)
            if target == GIVEN_OUT:
                assert number in graph["outputs"][place]["linkIds"] and graph["outputs"][place]["type"] == kind
                continue
            entry = nodes[target]["inputs"][place]
            assert entry["link"] == number
            wanted = _takes(nodes[target], place, known, info)
            assert wanted in ("*", MATCHING) or kind == wanted or kind in wanted.split(",")
            used.add((target, entry["name"]))
        for node in graph["nodes"]:
            required = info.get(node["type"], {"input": {}})["input"].get("required", {})
            missing = {key for key, value in required.items() if not is_widget(value)}
            assert {(node["id"], key) for key in missing} <= used, node["type"]
            assert_the_subgraphs_ends(node, known, used)


def _gives(node: dict[str, Any], output: int, known: dict[str, Any], info: dict[str, Any]) -> str:
    """The type of an output of a node, or of one that stands for a subgraph."""
    if node["type"] in known:
        return known[node["type"]]["outputs"][output]["type"]
    return info[node["type"]]["output"][output]


def _takes(node: dict[str, Any], place: int, known: dict[str, Any], info: dict[str, Any]) -> str:
    """The type of an input of a node, or of one that stands for a subgraph."""
    if node["type"] in known:
        return known[node["type"]]["inputs"][place]["type"]
    kind = inputs_of(info[node["type"]])[node["inputs"][place]["name"]][0]
    return "COMBO" if isinstance(kind, list) else kind


def assert_the_subgraphs_ends(node: dict[str, Any], known: dict[str, Any], used: set[tuple[int, str]]) -> None:
    """A node that stands for a subgraph has its inputs and outputs, and shows the values that stand inside."""
    if node["type"] not in known:
        return
    graph = known[node["type"]]
    for ends in ("inputs", "outputs"):
        assert [(end["name"], end["type"]) for end in node[ends]] == [(end["name"], end["type"]) for end in graph[ends]]
    values = iter(node["widgets_values"])
    targets = {link["id"]: (link["target_id"], link["target_slot"]) for link in graph["links"]}
    inner = {other["id"]: other for other in graph["nodes"]}
    for entry, end in zip(node["inputs"], graph["inputs"], strict=True):
        if "widget" not in entry:
            assert (node["id"], entry["name"]) in used, entry["name"]
            continue
        value = next(values)
        for number in end["linkIds"]:
            target, place = targets[number]
            widgets = [other["name"] for other in inner[target]["inputs"] if "widget" in other]
            name = inner[target]["inputs"][place]["name"]
            assert inner[target]["widgets_values"][widgets.index(name)] == value, name


def assert_widgets_are_in_range(name: str, info: dict[str, Any], named_values: Callable[..., dict[str, Any]]) -> None:
    """Every widget has a value that its node takes."""
    for node in nodes_in(read(name)):
        if node["type"] not in info:
            continue
        specifications = inputs_of(info[node["type"]])
        values = named_values(node, info[node["type"]])
        widgets = {key for key, value in specifications.items() if is_widget(value)}
        assert set(values) == widgets - LATER.get(node["type"], set()), node["type"]
        for key, value in values.items():
            kind, options = specifications[key][0], options_of(specifications[key])
            choices = choices_of(specifications[key])
            if choices is not None:
                if key not in (*FILE_WIDGETS, "file"):
                    assert value in choices, (node["type"], key)
            elif {"INT", "FLOAT"} & set(kind.split(",")):
                assert options.get("min", value) <= value <= options.get("max", value), (node["type"], key)
                if key in ("width", "height"):
                    assert value % options.get("step", 1) == 0
            else:
                assert isinstance(value, bool if kind == "BOOLEAN" else str), (node["type"], key)


def assert_loaders_list_their_models(
    name: str, info: dict[str, Any], named_values: Callable[..., dict[str, Any]]
) -> None:
    """Loaders say where their files come from, and the note says where they go."""
    workflow = read(name)
    note = only(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    folders = set(info)
    for node in nodes_in(workflow):
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        values = named_values(node, info[node["type"]]) if node["type"] in folders else {}
        files = {value for key, value in values.items() if key in FILE_WIDGETS}
        # A detector is a folder; its weights are what is listed.
        assert {file for file in models if file.partition("/")[0] not in files} == set(), node["type"]
        assert {file.partition("/")[0] for file in models} | set(models) >= files, node["type"]
        for model in models.values():
            assert model["url"].startswith("https://") and model["url"].endswith(Path(model["name"]).name)
            assert f"models/{model['directory']}" in note
            assert model["name"].partition("/")[0] in note


def assert_nothing_overlaps(name: str) -> None:
    """No node lies on another, and each of the workflow itself lies in one group."""
    workflow = read(name)
    for graph in graphs_of(workflow):
        boxes = [(*node["pos"], *node["size"], node["type"]) for node in graph["nodes"]]
        for place, (x, y, width, height, kind) in enumerate(boxes):
            for other_x, other_y, other_width, other_height, other in boxes[:place]:
                apart_x = x >= other_x + other_width or other_x >= x + width
                # The title is above a node's position.
                apart_y = y - 30 >= other_y + other_height or other_y - 30 >= y + height
                assert apart_x or apart_y, (kind, other)
    for node in workflow["nodes"]:
        x, width = node["pos"][0], node["size"][0]
        sides = [(group["bounding"][0], group["bounding"][2]) for group in workflow["groups"]]
        inside = [left <= x and x + width <= left + wide for left, wide in sides]
        assert sum(inside) == (node["type"] != "MarkdownNote")


def assert_well_formed(name: str, info: dict[str, Any], named_values: Callable[..., dict[str, Any]]) -> None:
    """All of this that is asked of every workflow."""
    assert_nodes_are_core_and_ours(name, info)
    assert_links_match(name, info)
    assert_widgets_are_in_range(name, info, named_values)
    assert_nothing_overlaps(name)
