"""The bundled workflows of drawn paths: well formed, and run by a real ComfyUI.

The Toybox graph runs as bundled; of the others the loaders are replaced by tiny random models.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from bundled_graphs import (
    PERCEPTION,
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

TOYBOX, WAN, ANIMATEDIFF = "guided_path_toybox", "wan_2_1_guided_path", "animatediff_guided_path"
LTX = "ltx_2_3_guided_path"
FAMILIES = {WAN: "wan", LTX: "ltxav", ANIMATEDIFF: "sd15"}
NAMES = (TOYBOX, *FAMILIES)
FRAMES = {WAN: 9, LTX: 17, ANIMATEDIFF: 10}
SMALL = {
    "EmptyHunyuanLatentVideo": {"width": 96, "height": 64, "length": 9},
    "EmptyLTXVLatentVideo": {"width": 96, "height": 64, "length": 17},
    "LTXVEmptyLatentAudio": {"frames_number": 17},
    "ADE_StandardUniformContextOptions": {"context_length": 8},
    "KSampler": {"steps": 2},
    "MGV_PreviewGuide": {"size": 64},
}
FILM, FREE, FIRST = "film", "free", "first"
SOUNDS = {FILM: "film_sound", FREE: "free_sound"}
EMPTY = ("MGV_VideoNoise", "EmptyLatentImage", "EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo")


@pytest.fixture
def host(name, request):
    return request.getfixturevalue("animatediff_server" if name == ANIMATEDIFF else "server")


@pytest.fixture
def info(name, host):
    known = host.get("/object_info")
    skip_unless_known(name, known)
    return known


@pytest.mark.parametrize("name", NAMES)
def test_form(name, info, named_values, to_prompt):
    assert_well_formed(name, info, named_values)
    if name in FAMILIES:
        assert_loaders_list_their_models(name, info, named_values)
    kinds = [node["type"] for node in read(name)["nodes"]]
    assert (kinds.count("MGV_MaskMetrics"), kinds.count("MGV_FirstFrameLock")) == (
        2 if name == TOYBOX else 1,
        0 if name in (WAN, LTX) else 1,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_the_graph_fits_together(name, info, to_prompt):
    """One prompt, one object, one background; masks of the film's length and size; both films from the same noise."""
    prompt = to_prompt(read(name), info)
    text = prompt[only(nodes_of(prompt, "PrimitiveStringMultiline"))]["inputs"]["value"]
    things = {title_of(name, number): prompt[number] for number in nodes_of(prompt, "PrimitiveString")}
    thing, place = (
        next(node["inputs"]["value"] for title, node in things.items() if title.startswith(word))
        for word in ("Object", "Background")
    )
    assert thing in text and place in text
    path = prompt[only(nodes_of(prompt, "MGV_PathMasks"))]["inputs"]
    (drawn,) = json.loads(path["paths"])
    frames = number_of(prompt, path["frames"])
    assert drawn["label"] == thing and drawn["keyframes"][-1]["frame"] == frames - 1
    sizes = {
        (node["inputs"]["width"], node["inputs"]["height"])
        for kind in (*EMPTY, "MGV_PathMasks")
        for node in (prompt[number] for number in nodes_of(prompt, kind))
    }
    assert len(sizes) == 1
    lengths = [
        node["inputs"].get("length", node["inputs"].get("batch_size" if name == ANIMATEDIFF else "frames"))
        for kind in EMPTY
        for node in (prompt[number] for number in nodes_of(prompt, kind))
    ]
    found = sorted(number_of(prompt, length) for length in lengths)
    assert found == ([frames] if name in (WAN, LTX) else [1, frames])
    film, free = (sampler(prompt, name, title) for title in ("Sample along the path", "Sample by itself"))
    assert but_the_model(prompt, film) == but_the_model(prompt, free)
    for number in nodes_of(prompt, "MGV_DynamicMaskGuidance"):
        assert prompt[number]["inputs"]["mode"] == "dmg"


def number_of(prompt, value):
    """A number in a widget, or the one that is connected."""
    return prompt[value[0]]["inputs"]["value"] if isinstance(value, list) else value


def but_the_model(prompt, inputs):
    """What a sampler is given but for the model, which its guider may hold."""
    found = {key: value for key, value in inputs.items() if key != "model"}
    if "guider" in found:
        found["guider"] = but_the_model(prompt, prompt[found["guider"][0]]["inputs"])
    return found


def title_of(name, number):
    return next(node.get("title", "") for node in read(name)["nodes"] if str(node["id"]) == number)


def numbered(name, title):
    return next(str(node["id"]) for node in read(name)["nodes"] if node.get("title") == title)


def sampler(prompt, name, title):
    return prompt[numbered(name, title)]["inputs"]


def saving_latents(prompt, name):
    """A graph that also saves what its samplers make."""
    titles = {FILM: "Sample along the path", FREE: "Sample by itself", FIRST: "Sample the first frame"}
    for key, title in titles.items():
        if key != FIRST or name not in (WAN, LTX):
            save_latents(prompt, [numbered(name, title), 0], key, SOUNDS[key] if name == LTX else None)
    return prompt


def changed(prompt, kind, **values):
    """A copy in which all nodes of a kind have other values."""
    other = copy.deepcopy(prompt)
    for number in nodes_of(other, kind):
        other[number]["inputs"].update(values)
    return other


@pytest.fixture(scope="module")
def toybox_prompt(server, to_prompt, toybox_folder):
    return saving_latents(to_prompt(read(TOYBOX), server.get("/object_info")), TOYBOX)


@pytest.fixture(scope="module")
def toybox_run(server, toybox_prompt):
    run = server.run(toybox_prompt)
    assert run.succeeded, run.error
    return run


def overlap(run, title):
    """The IoU that a Mask Metrics node shows."""
    words = run.outputs[numbered(TOYBOX, title)]["text"][0]
    line = next(line for line in words.splitlines() if line.startswith("overlap"))
    return float(line.rpartition(" ")[2])


class TestToybox:
    def test_the_object_follows_the_path_as_bundled(self, server, toybox_run):
        assert overlap(toybox_run, "Measure by itself") < 0.3
        assert overlap(toybox_run, "Measure along the path") > 0.6
        frames = toybox_run.outputs[numbered(TOYBOX, "All frames")]["images"]
        assert len(frames) == 8
        (film,) = toybox_run.outputs[numbered(TOYBOX, "Left by itself, right along the path")]["images"]
        assert server.path_of(film).stat().st_size > 1000
        # The picture of the path is shown under its node.
        assert len(toybox_run.outputs[numbered(TOYBOX, "Draw the path")]["images"]) == 1

    def test_the_first_frame_is_kept_to_the_bit(self, server, toybox_run):
        film = saved_latents(server, toybox_run, FILM)
        first = saved_latents(server, toybox_run, FIRST)
        assert film.shape == (1, 4, 8, 16, 16) and first.shape == (1, 4, 1, 16, 16)
        assert torch.equal(film[:, :, :1], first)

    def test_without_guide_and_lock_both_films_are_one(self, server, toybox_prompt, toybox_run):
        free = saved_latents(server, toybox_run, FREE)
        plain = changed(toybox_prompt, "MGV_DynamicMaskGuidance", strength=0.0)
        plain[numbered(TOYBOX, "Sample along the path")]["inputs"]["model"] = ["patch", 0]
        guided = copy.deepcopy(plain[nodes_of(plain, "MGV_PatchAttention")[-1]])
        guided["inputs"]["guide"] = [numbered(TOYBOX, "Guide of the film"), 0]
        plain["patch"] = guided
        keep = {FILM, "patch"}
        for number in ("MGV_MaskMetrics", "SaveVideo", "PreviewImage", "SaveLatent"):
            for found in nodes_of(plain, number):
                if found not in keep:
                    del plain[found]
        run = server.run(plain)
        assert run.succeeded, run.error
        assert torch.equal(saved_latents(server, run, FILM), free)

    def test_wrong_masks_are_named_before_anything_is_sampled(self, server, toybox_prompt):
        run = server.run(changed(toybox_prompt, "MGV_PathMasks", frames=5))
        assert "5" in run.error and "8" in run.error, run.error
        run = server.run(changed(toybox_prompt, "MGV_PathMasks", paths='[{"label": "red ball"}]'))
        assert "object 1 of the path lacks a list" in run.error


def small_prompt(name, info, to_prompt):
    """A workflow with tiny models, sizes and steps, and the Toybox's detector and segmenter."""
    prompt = to_prompt(read(name), info)
    for seed, node in enumerate(prompt.values()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind in STAND_INS:
            stand_in(node, info, FAMILIES[name], seed)
        if kind in PERCEPTION:
            inputs["model_name"] = "Toybox"
        inputs.update(SMALL.get(kind, {}))
        if kind == "EmptyLatentImage":
            inputs |= {"width": 96, "height": 64, "batch_size": min(inputs["batch_size"], FRAMES[name])}
        if kind == "MGV_PathMasks":
            inputs |= {"width": 96, "height": 64, "frames": FRAMES[name]}
    return saving_latents(prompt, name)


@pytest.mark.parametrize("name", rows(FAMILIES, (WAN, LTX)))
class TestNative:
    """Whole graphs with tiny random models; these show no object, so that only what is sampled says something."""

    @pytest.fixture
    def prompt(self, name, info, to_prompt, toybox_folder):
        return small_prompt(name, info, to_prompt)

    def test_runs_to_the_end(self, name, host, prompt):
        run = host.run(prompt)
        assert run.succeeded, run.error
        film, free = (saved_latents(host, run, key) for key in (FILM, FREE))
        assert film.isfinite().all() and not torch.equal(film, free)
        saved = [run.outputs[number]["images"][0] for number in nodes_of(prompt, "SaveVideo")]
        assert len(saved) == (3 if name == LTX else 2)
        assert all(host.path_of(entry).stat().st_size > 1000 for entry in saved)
        if name == LTX:
            lengths = [saved_sound(host, run, number) for number in nodes_of(prompt, "SaveVideo")]
            assert min(lengths) > 0.5 * FRAMES[LTX] / 25.0
            assert saved_latents(host, run, SOUNDS[FILM]).isfinite().all()
        report = run.outputs[numbered(name, "Measure along the path")]["text"][0]
        assert "overlap with the masks (IoU): 0.000" in report and "background: 0." in report
        assert f"in {FRAMES[name]} of {FRAMES[name]} frames" in texts(run, prompt)[0]
        drawn = run.outputs[numbered(name, "Tinted: where it is, dashed: where it should be")]["images"]
        assert len(drawn) == FRAMES[name]

    @pytest.mark.slow
    def test_strength_zero_is_the_film_by_itself(self, name, host, prompt):
        plain = changed(prompt, "MGV_DynamicMaskGuidance", strength=0.0)
        if name == ANIMATEDIFF:
            lock = only(nodes_of(plain, "MGV_FirstFrameLock"))
            film = plain[numbered(name, "Sample along the path")]["inputs"]
            film["model"] = plain.pop(lock)["inputs"]["model"]
        for number in nodes_of(plain, "MGV_MaskMetrics"):
            del plain[number]
        del plain[numbered(name, "Tinted: where it is, dashed: where it should be")]
        host.empty_cache()
        run = host.run(plain)
        assert run.succeeded, run.error
        assert torch.equal(saved_latents(host, run, FILM), saved_latents(host, run, FREE))
        if name == LTX:
            assert torch.equal(saved_latents(host, run, SOUNDS[FILM]), saved_latents(host, run, SOUNDS[FREE]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [ANIMATEDIFF])
def test_the_first_mask_makes_the_first_frame_and_the_film_keeps_it(name, host, info, to_prompt, toybox_folder):
    prompt = small_prompt(name, info, to_prompt)
    host.empty_cache()
    run = host.run(prompt)
    assert run.succeeded, run.error
    film, first = (saved_latents(host, run, key) for key in (FILM, FIRST))
    assert first.shape == (1, 4, 8, 12) and torch.equal(film[:1], first)
    # ControlNet reads the outline: without it the picture is another.
    loose = host.run(changed(prompt, "ControlNetApplyAdvanced", strength=0.0))
    assert loose.succeeded, loose.error
    assert not torch.equal(saved_latents(host, loose, FIRST), first)
    # As with a path that begins elsewhere.
    moved = copy.deepcopy(prompt)
    path = moved[only(nodes_of(moved, "MGV_PathMasks"))]["inputs"]
    drawn = json.loads(path["paths"])
    drawn[0]["keyframes"][0] |= {"x": 0.7, "y": 0.4}
    path["paths"] = json.dumps(drawn)
    run = host.run(moved)
    assert run.succeeded, run.error
    assert not torch.equal(saved_latents(host, run, FIRST), first)
