"""The bundled workflow of clips round after round: well formed, run by a real ComfyUI, and opened in its frontend."""

from __future__ import annotations

import copy
import json

import pytest
from bundled_graphs import assert_well_formed, nodes_of, only, read
from PIL import Image

pytestmark = pytest.mark.comfy

NAME = "mask_guided_extension_toybox"
ROUNDS, FRAMES = 2, 4


@pytest.fixture(scope="module")
def host(server):
    # Graphs of other modules may have run the same nodes.
    server.empty_cache()
    return server


@pytest.fixture(scope="module")
def info(host):
    return host.get("/object_info")


@pytest.fixture(scope="module")
def whole(info, to_prompt):
    """The graph as bundled."""
    return to_prompt(read(NAME), info)


@pytest.fixture(scope="module")
def prompt(whole, toybox_folder):
    """With few frames, rounds and steps."""
    small = copy.deepcopy(whole)
    inputs_of(small, "MGV_MaskGuidedExtend").update(rounds=ROUNDS, frames=FRAMES, steps=3)
    inputs_of(small, "MGV_PathMasks").update(frames=7)
    return small


@pytest.fixture(scope="module")
def first_run(host, prompt):
    run = host.run(prompt)
    assert run.succeeded, run.error
    return run


def inputs_of(prompt, kind):
    return prompt[only(nodes_of(prompt, kind))]["inputs"]


def texts(run, prompt, kind):
    (text,) = run.outputs[only(nodes_of(prompt, kind))]["text"]
    return text


def pictures(host, run, prompt):
    shown = run.outputs[only(nodes_of(prompt, "PreviewImage"))]["images"]
    return [Image.open(host.path_of(entry)).convert("RGB").tobytes() for entry in shown]


def test_form(info, named_values):
    assert_well_formed(NAME, info, named_values)
    kinds = {node["type"] for node in read(NAME)["nodes"]}
    assert {"MGV_PathMasks", "MGV_DynamicMaskGuidance", "MGV_MaskGuidedExtend", "MGV_MaskMetrics"} <= kinds


def test_what_stands_in_the_graph_fits_together(whole):
    """One prompt, one object, one background; masks for all rounds, of the film's size."""
    extend, path = inputs_of(whole, "MGV_MaskGuidedExtend"), inputs_of(whole, "MGV_PathMasks")
    text = inputs_of(whole, "PrimitiveStringMultiline")["value"]
    words = [whole[number]["inputs"]["value"] for number in nodes_of(whole, "PrimitiveString")]
    (drawn,) = json.loads(path["paths"])
    assert all(word in text for word in words) and drawn["label"] in words
    assert path["frames"] == extend["rounds"] * (extend["frames"] - 1) + 1 == drawn["keyframes"][-1]["frame"] + 1
    assert (path["width"], path["height"]) == (extend["width"], extend["height"]) == (64, 64)
    assert inputs_of(whole, "MGV_DynamicMaskGuidance")["mode"] == "dmg"
    assert extend["name"] == ""


def test_it_runs_to_the_end(host, prompt, first_run):
    assert len(pictures(host, first_run, prompt)) == 7
    (saved,) = first_run.outputs[only(nodes_of(prompt, "SaveVideo"))]["images"]
    assert host.path_of(saved).stat().st_size > 1000
    assert texts(first_run, prompt, "PreviewAny").startswith("2 rounds, 7 frames, 64 x 64; mode dmg, strength 1, seed")
    assert "red ball: IoU" in texts(first_run, prompt, "MGV_MaskMetrics")
    # Nothing is kept of a film without a name.
    assert not list((host.folder / "temp").glob("rounds-*"))


def test_strength_0_makes_another_film(host, prompt, first_run):
    free = copy.deepcopy(prompt)
    inputs_of(free, "MGV_DynamicMaskGuidance").update(strength=0.0)
    run = host.run(free)
    assert run.succeeded, run.error
    assert pictures(host, run, free) != pictures(host, first_run, prompt)


def test_a_named_film_gains_rounds(host, prompt, first_run):
    named = copy.deepcopy(prompt)
    inputs_of(named, "MGV_MaskGuidedExtend").update(name="video/circle", rounds=1)
    inputs_of(named, "MGV_PathMasks").update(frames=FRAMES)
    assert host.run(named).succeeded
    folder = host.folder / "output" / "video" / "circle"
    assert [path.name for path in (folder / "rounds").iterdir()] == ["round_0001.safetensors"]
    longer = copy.deepcopy(named)
    inputs_of(longer, "MGV_MaskGuidedExtend").update(rounds=ROUNDS)
    inputs_of(longer, "MGV_PathMasks").update(frames=7)
    # The path is a smooth curve through keyframes beyond both ends, so that its beginning is the same.
    run = host.run(longer)
    assert run.succeeded, run.error
    assert texts(run, longer, "PreviewAny").startswith("round 1 was finished by an earlier run.")
    assert pictures(host, run, longer) == pictures(host, first_run, prompt)
    inputs_of(longer, "MGV_MaskGuidedExtend").update(cfg=5.0)
    assert "was made with cfg 4.0, and now cfg is 5.0" in host.run(longer).error


def test_masks_of_another_length_are_named(host, prompt):
    wrong = copy.deepcopy(prompt)
    inputs_of(wrong, "MGV_PathMasks").update(frames=9)
    assert "there are 9 masks, not a whole number of rounds: 2 rounds of 4 frames take 7" in host.run(wrong).error
