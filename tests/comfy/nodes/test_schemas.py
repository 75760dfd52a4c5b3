"""Schemas, help pages and the bundled workflow fit each other and the host's rules."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re

import pytest
from saved_graphs import choices_of, inputs_of, options_of

from mask_guided_video import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

pytestmark = pytest.mark.comfy

PREFIX = "MGV_"
NODE_IDS = set(NODE_CLASS_MAPPINGS)
# Without the graph of the Toybox nobody sees how these go together.
TOYBOX_WORKFLOW_IDS = {
    "MGV_LoadVideoModel",
    "MGV_VideoNoise",
    "MGV_SampleVideo",
    "MGV_Regenerate",
    "MGV_LoadGroundingDINO",
    "MGV_DetectObjects",
    "MGV_LoadSAM",
    "MGV_TrackMasks",
    "MGV_RefineMasks",
    "MGV_MaskToAttentionBias",
    "MGV_PatchAttention",
    "MGV_PreviewGuide",
}


@pytest.fixture(scope="module")
def ours(object_info):
    return {name: info for name, info in object_info.items() if name.startswith(PREFIX)}


def test_every_node_is_registered(ours):
    assert set(ours) == NODE_IDS


def test_import_is_silent(server):
    start = server.log().split("Starting server")[0]
    lines = [line for line in start.splitlines() if "mask-guided-video" in line or PREFIX in line]
    assert len(lines) == 1 and "FAILED" not in lines[0], lines


def test_mappings_are_literal(root):
    """Tools read them from the source without running it."""
    tree = ast.parse((root / "__init__.py").read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            found[node.targets[0].id] = {key.value for key in node.value.keys}
    assert found == {"NODE_CLASS_MAPPINGS": NODE_IDS, "NODE_DISPLAY_NAME_MAPPINGS": NODE_IDS}


def test_mappings_hold_every_node_of_the_modules():
    """Under its id and its name, which ComfyUI takes from the schema."""
    from comfy_api.latest import io

    from mask_guided_video import nodes

    names = [module.name for module in pkgutil.iter_modules(nodes.__path__)]
    modules = [importlib.import_module(f"{nodes.__name__}.{name}") for name in names]
    classes = [
        entry
        for module in modules
        for entry in vars(module).values()
        if isinstance(entry, type) and issubclass(entry, io.ComfyNode) and entry.__module__ == module.__name__
    ]
    schemas = {node: node.define_schema() for node in classes}
    assert {schema.node_id: node for node, schema in schemas.items()} == NODE_CLASS_MAPPINGS
    assert {schema.node_id: schema.display_name for schema in schemas.values()} == NODE_DISPLAY_NAME_MAPPINGS


def test_prompt_schedule_names_the_models_that_it_takes():
    from mask_guided_video.backbones.registry import FAMILIES, supported_models
    from mask_guided_video.host.prompts.joined_prompts import check_family
    from mask_guided_video.nodes.prompt_schedule import SCHEDULED_FAMILIES, PromptSchedule

    for family in set(FAMILIES) - set(SCHEDULED_FAMILIES):
        with pytest.raises(ValueError, match=family.name):
            check_family(family)
    for family in SCHEDULED_FAMILIES:
        check_family(family)
    assert supported_models(SCHEDULED_FAMILIES) in PromptSchedule.define_schema().inputs[0].tooltip


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_texts_are_complete(ours, node_id):
    info = ours[node_id]
    assert re.fullmatch(r"MGV_[A-Za-z0-9]+", node_id)
    assert info["description"].strip() and info["category"].startswith("Mask-Guided Video/")
    for name, specification in inputs_of(info).items():
        options = options_of(specification)
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert options.get("tooltip", "").strip(), name
        if specification[0] in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], name
        if specification[0] == "FLOAT":
            assert options["step"] > 0, name
        if specification[0] == "COMBO":
            assert options["default"] in options["options"], name
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(tooltip and tooltip.strip() for tooltip in info["output_tooltips"])


def core_inputs():
    """The input classes of this core by type."""
    from comfy_api.latest import io

    kinds = [kind for kind in vars(io).values() if isinstance(kind, type) and hasattr(kind, "io_type")]
    return {kind.io_type: kind.Input for kind in kinds if isinstance(getattr(kind, "Input", None), type)}


def core_editor_types():
    """Types for which this core has an input with an editor of its own."""
    from comfy_api.latest import io

    editors = io.WidgetInput | io.DynamicCombo.Input
    return {kind for kind, entry in core_inputs().items() if issubclass(entry, editors)}


def test_core_has_editors_for_these_types():
    """Plain values, and one that is a link with us."""
    assert core_editor_types() >= {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "BOUNDING_BOX", "CURVE", "COLOR"}
    assert not core_editor_types() & {"MODEL", "MASK", "MGV_TRACKS"}


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_links_are_no_editors(ours, node_id):
    """A type without a widget of ours must not get one from core, today or later: it would send what nobody gave."""
    from comfy_api.latest import io

    declared = {entry.id: entry for entry in NODE_CLASS_MAPPINGS[node_id].define_schema().inputs}
    for name, specification in inputs_of(ours[node_id]).items():
        kind, options = specification[0], options_of(specification)
        if isinstance(declared[name], io.WidgetInput):
            assert kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and "forceInput" not in options, name
        elif kind in core_editor_types() or kind not in core_inputs():
            assert options.get("forceInput") is True, (name, kind)


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_help_page_names_every_input_and_output(ours, root, node_id):
    page = (root / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {ours[node_id]['display_name']}\n")
    for section in ("## Inputs", "## Outputs", "## Example", "## Notes"):
        assert section in page
    for name in [*inputs_of(ours[node_id]), *ours[node_id]["output_name"]]:
        assert f"`{name}`" in page, name


def test_no_help_page_without_node(root):
    assert {path.stem for path in (root / "web" / "docs").glob("*.md")} == NODE_IDS


def test_host_serves_the_help(server):
    import urllib.request

    address = f"{server.url}/extensions/mask-guided-video/docs/MGV_PatchAttention.md"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read().decode().startswith("# Patch Attention")


def test_host_offers_the_workflows(server, root):
    bundled = {path.stem for path in (root / "workflows").glob("*.json")}
    assert "mask_refine_toybox" in bundled
    assert set(server.get("/workflow_templates")["mask-guided-video"]) == bundled


def test_host_and_manager_read_the_metadata(root):
    """With core's own reader, on which ComfyUI Manager builds."""
    from comfy_config.config_parser import extract_node_configuration

    found = extract_node_configuration(str(root))
    assert (found.project.name, found.tool_comfy.publisher_id) == ("mask-guided-video", "mask-guided-video")
    assert found.tool_comfy.display_name == "Mask-Guided Video" and found.tool_comfy.icon.endswith("/icon.png")
    assert found.project.supported_comfyui_version == ">=0.20.1" and "torch>=2.1" in found.project.dependencies
    assert found.project.urls.repository.startswith("https://github.com/")


def test_workflows_are_flat_with_thumbnails(root):
    folder = root / "workflows"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    for path in folder.glob("*.json"):
        assert path.with_suffix(".jpg").is_file(), path


def test_workflow_nodes_exist_and_are_labelled(workflow, object_info, root):
    version = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    kinds = [node["type"] for node in workflow["nodes"]]
    assert set(kinds) >= TOYBOX_WORKFLOW_IDS
    assert {"Note", "MarkdownNote"} & set(kinds)
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        assert node["type"] in object_info
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        mine = node["type"].startswith(PREFIX)
        assert properties["cnr_id"] == ("mask-guided-video" if mine else "comfy-core")
        assert properties["ver"] == (version if mine else properties["ver"])
    assert "\\\\" not in json.dumps(workflow)


def test_workflow_links_match(workflow, object_info):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["links"]
    for number, origin, output, target, place, kind in workflow["links"]:
        source, sink = nodes[origin], nodes[target]
        entry = sink["inputs"][place]
        assert entry["link"] == number and number in source["outputs"][output]["links"]
        assert object_info[source["type"]]["output"][output] == kind
        wanted = inputs_of(object_info[sink["type"]])[entry["name"]][0]
        assert wanted == "*" or kind in wanted.split(",") or wanted == kind


def test_workflow_values_are_in_range(workflow, object_info, named_values):
    for node in workflow["nodes"]:
        if node["type"] not in object_info:
            continue
        specifications = inputs_of(object_info[node["type"]])
        for name, value in named_values(node, object_info[node["type"]]).items():
            kind, options = specifications[name][0], options_of(specifications[name])
            choices = choices_of(specifications[name])
            if choices is not None:
                assert value in choices, (node["type"], name)
            elif kind in ("INT", "FLOAT"):
                assert options.get("min", value) <= value <= options.get("max", value), (node["type"], name)
