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
    save_latents,
    saved_latents,
    saved_sound,
    skip_unless_known,
    stand_in,
    texts,
)
from family_rows import rows

pytestmark = pytest.mark.comfy

ANIMATEDIFF = "animatediff_mask_guidance"
FAMILIES = {
    "wan_2_1_mask_guidance": "wan",
    "wan_2_2_mask_guidance": "wan",
    "ltx_video_mask_guidance": "ltx",
    "ltx_2_3_mask_guidance": "ltxav",
    "hunyuan_video_mask_guidance": "hunyuan",
    "hunyuan_video_1_5_mask_guidance": "hunyuan15",
    ANIMATEDIFF: "sd15",
}
WAN22 = "wan_2_2_mask_guidance"
# How many videos a graph saves, where it is not the first, the second and both.
SAVED = {"ltx_2_3_mask_guidance": 4}
# Their latents hold a video and its sound.
SOUND = ("ltxav",)
SMALL = {
    "EmptyHunyuanLatentVideo": {"width": 96, "height": 64, "length": 9},
    "EmptyHunyuanVideo15Latent": {"width": 96, "height": 64, "length": 9},
    "EmptyLTXVLatentVideo": {"width": 96, "height": 64, "length": 17},
    "LTXVEmptyLatentAudio": {"frames_number": 17},
    # More frames than a context window has.
    "EmptyLatentImage": {"width": 96, "height": 64, "batch_size": 10},
    "ADE_StandardUniformContextOptions": {"context_length": 8},
    "KSampler": {"steps": 2},
    "LTXVScheduler": {"steps": 2},
    "BasicScheduler": {"steps": 2},
    "MGV_PreviewGuide": {"size": 64},
}
FRAMES = {"wan": 9, "ltx": 17, "ltxav": 17, "hunyuan": 9, "hunyuan15": 9, "sd15": 10}
LATENT_FRAMES = {name: 10 if name == "sd15" else 3 for name in FRAMES}
# Nodes that the test adds.
FIRST, SECOND, FIRST_FILM, SECOND_FILM = "first", "second", "first_film", "second_film"
FIRST_SOUND, SECOND_SOUND = "first_sound", "second_sound"

# It starts from a film of the user's; how it runs is tested in a module of its own.
FIND_FOLLOW = "find_follow_mask"
# How these run is tested in a module of its own, too.
LAVIE = ("lavie_16_frames", "lavie_128_frames_free_long", "lavie_interpolate_upscale")


workflows = pytest.mark.parametrize("name", FAMILIES)
# Each graph runs once by default, with objects that are tracked; without an object, and with a mask that is painted,
# the one with sound does.
one_graph = pytest.mark.parametrize("name", rows(FAMILIES, ("ltx_2_3_mask_guidance",)))
all_workflows = pytest.mark.parametrize("name", (*FAMILIES, FIND_FOLLOW, *LAVIE))


@pytest.fixture
def host(name, request):
    """The server that knows the workflow's nodes."""
    return request.getfixturevalue("animatediff_server" if name == ANIMATEDIFF else "server")


@pytest.fixture(scope="module")
def known_info():
    """What the servers answered, by their address: it does not change."""
    return {}


@pytest.fixture
def host_info(name, host, known_info):
    if host.url not in known_info:
        known_info[host.url] = host.get("/object_info")
    skip_unless_known(name, known_info[host.url])
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
                assert values["length"] % (8 if FAMILIES[name].startswith("ltx") else 4) == 1

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
            stand_in(node, info, family, seed)
        if kind in PERCEPTION:
            inputs["model_name"] = "Toybox"
        inputs.update(SMALL.get(kind, {}))
    for number, sound, source in ((FIRST, FIRST_SOUND, first), (SECOND, SECOND_SOUND, second)):
        save_latents(prompt, source, number, sound if family in SOUND else None)
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


def assert_sound_is_kept(host, run, prompt):
    """Both clips have sound of their length, and each saved video that is of one clip has it in its file."""
    first, second = saved_latents(host, run, FIRST_SOUND), saved_latents(host, run, SECOND_SOUND)
    assert first.shape == second.shape and first.isfinite().all() and second.isfinite().all()
    for number in nodes_of(prompt, "SaveVideo"):
        assert saved_sound(host, run, number) > 0.5 * FRAMES["ltxav"] / 25.0


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
        assert len(saved) == SAVED.get(name, 3) and all(host.path_of(entry).stat().st_size > 1000 for entry in saved)
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
        if FAMILIES[name] in SOUND:
            assert_sound_is_kept(host, guided, prompt)
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

    @pytest.mark.parametrize("name", [WAN22])
    def test_both_models_are_guided(self, name, server, prompt):
        both = with_painted_mask(prompt, 1.0)
        results = [saved_latents(server, server.run(both), SECOND)]
        patches = nodes_of(both, "MGV_PatchAttention")
        assert len(patches) == 2
        for left_out in patches:
            one = copy.deepcopy(both)
            for node in one.values():
                if node["inputs"].get("model") == [left_out, 0]:
                    node["inputs"]["model"] = one[left_out]["inputs"]["model"]
            results.append(saved_latents(server, server.run(one), SECOND))
        assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])

    @pytest.mark.parametrize("name", [WAN22])
    def test_fast_is_the_loras_four_steps_and_cfg_1(self, name, host_info, to_prompt):
        """Both settings of the switch, as the samplers see them; ComfyUI's switch asks for the chosen side only."""
        found = {}
        for fast in (True, False):
            prompt = to_prompt(with_fast(read(name), fast), host_info)
            first, second = (prompt[number]["inputs"] for number in nodes_of(prompt, "KSamplerAdvanced")[:2])
            found[fast] = {key: chosen(prompt, first[key]) for key in ("steps", "cfg", "end_at_step")}
            assert first["end_at_step"] == second["start_at_step"] and second["end_at_step"] == first["steps"]
            kinds = [loader_of(prompt, inputs["model"]) for inputs in (first, second)]
            assert kinds == ["LoraLoaderModelOnly" if fast else "UNETLoader"] * 2
        assert found[True] == {"steps": 4, "cfg": 1.0, "end_at_step": 2}
        assert found[False] == {"steps": 20, "cfg": 3.5, "end_at_step": 10}

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [WAN22])
    def test_without_the_loras_it_runs_too(self, name, host, host_info, to_prompt, toybox_folder):
        films = []
        for fast in (True, False):
            prompt = small_prompt(with_fast(read(name), fast), FAMILIES[name], host_info, to_prompt)
            run = afresh(host, with_painted_mask(prompt, 1.0))
            assert run.succeeded, run.error
            films.append(saved_latents(host, run, SECOND))
        assert films[1].isfinite().all() and not torch.equal(films[0], films[1])


def with_fast(workflow, fast):
    """A graph with the switch of its subgraph of models set."""
    changed = copy.deepcopy(workflow)
    holder = only(node for node in changed["nodes"] if any(entry["name"] == "fast" for entry in node["inputs"]))
    widgets = [entry["name"] for entry in holder["inputs"] if "widget" in entry]
    holder["widgets_values"][widgets.index("fast")] = fast
    return changed


def chosen(prompt, source):
    """The value that comes from a number behind switches."""
    inputs = prompt[source[0]]["inputs"]
    return (
        chosen(prompt, inputs["on_true" if inputs["switch"] else "on_false"]) if "switch" in inputs else inputs["value"]
    )


def loader_of(prompt, source):
    """The kind of node that a model comes from, behind switches and settings of its sampling."""
    node = prompt[source[0]]
    inputs = node["inputs"]
    if "switch" in inputs:
        return loader_of(prompt, inputs["on_true" if inputs["switch"] else "on_false"])
    return loader_of(prompt, inputs["model"]) if node["class_type"] == "ModelSamplingSD3" else node["class_type"]
