"""The bundled workflows: well formed, and those of native video models run by a real ComfyUI with tiny random models.

Loaders are replaced by the nodes of ``stand_in_models``, detector and segmenter by the Toybox, sizes and steps by small
ones; everything else runs as bundled.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from bundled_graphs import (
    PERCEPTION,
    ROOT,
    STAND_INS,
    assert_loaders_list_their_models,
    assert_well_formed,
    nodes_of,
    only,
    read,
    saved_latents,
    texts,
)
from family_rows import rows
from saved_graphs import inputs_of

pytestmark = pytest.mark.comfy

ANIMATEDIFF = "animatediff_mask_guidance"
FAMILIES = {
    "wan_2_1_mask_guidance": "wan",
    "wan_2_2_mask_guidance": "wan",
    "ltx_video_mask_guidance": "ltx",
    "hunyuan_video_mask_guidance": "hunyuan",
    ANIMATEDIFF: "sd15",
}
# The step at which Wan 2.2's experts change, in the bundled graph and here.
CHANGE, SMALL_CHANGE = 10, 2
SMALL = {
    "EmptyHunyuanLatentVideo": {"width": 96, "height": 64, "length": 9},
    "EmptyLTXVLatentVideo": {"width": 96, "height": 64, "length": 17},
    # More frames than a context window has.
    "EmptyLatentImage": {"width": 96, "height": 64, "batch_size": 10},
    "ADE_StandardUniformContextOptions": {"context_length": 8},
    "KSampler": {"steps": 2},
    "KSamplerAdvanced": {"steps": 4},
    "LTXVScheduler": {"steps": 2},
    "BasicScheduler": {"steps": 2},
    "MGV_PreviewGuide": {"size": 64},
}
FRAMES = {"wan": 9, "ltx": 17, "hunyuan": 9, "sd15": 10}
LATENT_FRAMES = {"wan": 3, "ltx": 3, "hunyuan": 3, "sd15": 10}
# Nodes that the test adds.
FIRST, SECOND, FIRST_FILM, SECOND_FILM = "first", "second", "first_film", "second_film"

# It starts from a film of the user's; how it runs is tested in a module of its own.
FIND_FOLLOW = "find_follow_mask"
# How these run is tested in a module of its own, too.
LAVIE = ("lavie_16_frames", "lavie_128_frames_free_long", "lavie_interpolate_upscale")


workflows = pytest.mark.parametrize("name", FAMILIES)
# Each graph runs once by default, with objects that are tracked; without an object, and with a mask that is painted,
# one of them does.
one_graph = pytest.mark.parametrize("name", rows(FAMILIES, ("wan_2_1_mask_guidance",)))
all_workflows = pytest.mark.parametrize("name", (*FAMILIES, FIND_FOLLOW, *LAVIE))


@pytest.fixture
def host(name, request):
    """The server that knows the workflow's nodes."""
    return request.getfixturevalue("animatediff_server" if name == ANIMATEDIFF else "plain_server")


@pytest.fixture(scope="module")
def known_info():
    """What the servers answered, by their address: it does not change."""
    return {}


@pytest.fixture
def host_info(host, known_info):
    if host.url not in known_info:
        known_info[host.url] = host.get("/object_info")
    return known_info[host.url]


class TestForm:
    """What can be said of a workflow without running it."""

    @all_workflows
    def test_nodes_links_and_widgets_are_right_and_nothing_overlaps(self, name, host_info, named_values):
        assert_well_formed(name, host_info, named_values)

    @all_workflows
    def test_loaders_list_their_models(self, name, host_info, named_values):
        assert_loaders_list_their_models(name, host_info, named_values)

    @workflows
    def test_length_is_the_models_own(self, name, host_info, named_values):
        for node in read(name)["nodes"]:
            values = named_values(node, host_info[node["type"]]) if node["type"] in host_info else {}
            if "length" in values:
                assert values["length"] % (8 if FAMILIES[name] == "ltx" else 4) == 1

    @workflows
    def test_one_prompt_one_object_one_seed(self, name, host_info, to_prompt):
        """All read the same texts, with the same text encoder, and the object is in the prompt."""
        prompt = to_prompt(read(name), host_info)
        text = only(nodes_of(prompt, "PrimitiveStringMultiline"))
        thing = only(nodes_of(prompt, "PrimitiveString"))
        assert prompt[thing]["inputs"]["value"] in prompt[text]["inputs"]["value"]
        for kind, key, source in (
            ("MGV_PatchAttention", "prompt", text),
            ("MGV_DetectObjects", "phrases", thing),
            ("MGV_MaskToAttentionBias", "phrases", thing),
        ):
            assert nodes_of(prompt, kind)
            assert all(prompt[number]["inputs"][key] == [source, 0] for number in nodes_of(prompt, kind))
        encoders = [prompt[number]["inputs"] for number in nodes_of(prompt, "CLIPTextEncode")]
        assert any(inputs["text"] == [text, 0] for inputs in encoders)
        clips = [prompt[number]["inputs"]["clip"] for number in nodes_of(prompt, "MGV_PatchAttention")]
        assert all(clip == inputs["clip"] for clip in clips for inputs in encoders)
        assert only(nodes_of(prompt, "MGV_MaskToAttentionBias")) and "cross_text" in json.dumps(prompt)

    @workflows
    def test_both_films_are_sampled_alike(self, name, host_info, to_prompt):
        """The samplers of the second film differ from those of the first in nothing but the model."""
        prompt = to_prompt(read(name), host_info)
        first, second = film_latents(prompt)
        assert unguided(prompt, second) == unguided(prompt, first)


def film_latents(prompt):
    """Where the latents of the first and of the second film come from: a film is stitched after the other."""
    stitch = prompt[only(nodes_of(prompt, "ImageStitch"))]["inputs"]
    return [tuple(prompt[stitch[key][0]]["inputs"]["samples"]) for key in ("image1", "image2")]


def unguided(prompt, output):
    """All that an output is made of, by value, with every Patch Attention replaced by the model it patches."""
    node = prompt[output[0]]
    if node["class_type"] == "MGV_PatchAttention":
        return unguided(prompt, node["inputs"]["model"])
    inputs = {
        key: unguided(prompt, value) if isinstance(value, list) else value for key, value in node["inputs"].items()
    }
    return [node["class_type"], output[1], inputs]


def small_prompt(workflow, family, info, to_prompt):
    """A workflow with tiny models, sizes and steps, which also saves both films' latents and pictures."""
    prompt = to_prompt(workflow, info)
    first, second = film_latents(prompt)
    stitch = prompt[only(nodes_of(prompt, "ImageStitch"))]["inputs"]
    for seed, node in enumerate(prompt.values()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind in STAND_INS:
            stand_in = STAND_INS[kind]
            assert info[stand_in]["output"] == info[kind]["output"]
            kept = {key: value for key, value in inputs.items() if key in inputs_of(info[stand_in])}
            own = {"family": family, "seed": seed} if "family" in inputs_of(info[stand_in]) else {}
            node["class_type"], node["inputs"] = stand_in, {**kept, **own}
        if kind in PERCEPTION:
            inputs["model_name"] = "Toybox"
        inputs.update(SMALL.get(kind, {}))
        for key in ("start_at_step", "end_at_step"):
            if inputs.get(key) == CHANGE:
                inputs[key] = SMALL_CHANGE
    for number, source in ((FIRST, first), (SECOND, second)):
        inputs = {"samples": list(source), "filename_prefix": number}
        prompt[number] = {"class_type": "SaveLatent", "inputs": inputs}
    for number, key in ((FIRST_FILM, "image1"), (SECOND_FILM, "image2")):
        prompt[number] = {"class_type": "PreviewImage", "inputs": {"images": stitch[key]}}
    return prompt


def with_painted_mask(prompt, strength):
    """The graph guided by a painted rectangle, which stands still."""
    changed = copy.deepcopy(prompt)
    changed["white"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 40, "height": 32}}
    changed["black"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 96, "height": 64}}
    composite = {"destination": ["black", 0], "source": ["white", 0], "x": 16, "y": 8, "operation": "add"}
    changed["painted"] = {"class_type": "MaskComposite", "inputs": composite}
    bias = changed[only(nodes_of(changed, "MGV_MaskToAttentionBias"))]["inputs"]
    del bias["tracks"]
    bias.update({"mask": ["painted", 0], "strength": strength})
    return changed


@pytest.fixture
def prompt(name, host_info, to_prompt):
    for folder in ("detector", "segmenter"):
        if not (ROOT / "toybox" / folder).is_dir():
            pytest.skip(f"this checkout has no Toybox {folder}")
    return small_prompt(read(name), FAMILIES[name], host_info, to_prompt)


def afresh(host, prompt):
    """Run with nothing cached: of cached nodes the history has no outputs."""
    host.empty_cache()
    return host.run(prompt)


class TestRun:
    """The whole graph in a real ComfyUI."""

    @one_graph
    def test_without_an_object_the_films_are_the_same(self, name, host, prompt):
        for number in nodes_of(prompt, "MGV_DetectObjects"):
            prompt[number]["inputs"]["box_threshold"] = 1.0
        run = afresh(host, prompt)
        assert run.succeeded, run.error
        for number in (FIRST_FILM, SECOND_FILM):
            assert len(run.outputs[number]["images"]) == FRAMES[FAMILIES[name]]
        saved = [run.outputs[number]["images"][0] for number in nodes_of(prompt, "SaveVideo")]
        assert len(saved) == 3 and all(host.path_of(entry).stat().st_size > 1000 for entry in saved)
        assert len(texts(run, prompt)) == 3
        assert any("not found in any" in text for text in texts(run, prompt))
        assert any("unguided" in text for text in texts(run, prompt))
        assert torch.equal(saved_latents(host, run, FIRST), saved_latents(host, run, SECOND))

    @one_graph
    def test_a_painted_mask_guides_the_second_film(self, name, host, prompt):
        guided = afresh(host, with_painted_mask(prompt, 1.0))
        assert guided.succeeded, guided.error
        first, second = saved_latents(host, guided, FIRST), saved_latents(host, guided, SECOND)
        assert first.isfinite().all() and second.isfinite().all()
        assert (first - second).abs().max() > 1e-4 * first.abs().max()
        frames = len(guided.outputs[SECOND_FILM]["images"])
        grids = [guided.outputs[number]["images"] for number in nodes_of(prompt, "PreviewImage")]
        assert frames == FRAMES[FAMILIES[name]] and LATENT_FRAMES[FAMILIES[name]] in map(len, grids)
        zero = afresh(host, with_painted_mask(prompt, 0.0))
        assert zero.succeeded, zero.error
        assert torch.equal(saved_latents(host, zero, FIRST), first)
        assert torch.equal(saved_latents(host, zero, SECOND), first)

    @workflows
    def test_tracked_objects_guide_the_second_film(self, name, host, prompt):
        """As bundled from the tracks on; random films show no object, so the tracker is told where one is."""
        painted = with_painted_mask(prompt, 1.0)
        for number in nodes_of(prompt, "MGV_TrackMasks"):
            prompt[number]["inputs"]["mask"] = ["painted", 0]
        prompt |= {number: painted[number] for number in ("white", "black", "painted")}
        run = afresh(host, prompt)
        assert run.succeeded, run.error
        # The detector's own report comes first and says that it found nothing.
        assert not any("unguided" in text for text in texts(run, prompt)[1:]), texts(run, prompt)
        assert not torch.equal(saved_latents(host, run, FIRST), saved_latents(host, run, SECOND))

    def test_both_experts_are_guided(self, plain_server, to_prompt):
        name = "wan_2_2_mask_guidance"
        info = plain_server.get("/object_info")
        both = with_painted_mask(small_prompt(read(name), FAMILIES[name], info, to_prompt), 1.0)
        results = [saved_latents(plain_server, plain_server.run(both), SECOND)]
        patches = nodes_of(both, "MGV_PatchAttention")
        assert len(patches) == 2
        for left_out in patches:
            one = copy.deepcopy(both)
            for node in one.values():
                if node["inputs"].get("model") == [left_out, 0]:
                    node["inputs"]["model"] = one[left_out]["inputs"]["model"]
            results.append(saved_latents(plain_server, plain_server.run(one), SECOND))
        assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
