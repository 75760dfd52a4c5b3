"""The bundled workflow of two persons in one prompt, with sound: well formed, and run with a tiny random MiniMax H3."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from bundled_graphs import (
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

pytestmark = pytest.mark.comfy

NAME = "minimax_h3_two_persons"
FRAMES, STEPS = 22, 3
SIZE = {"width": 96, "height": 64}
# Nodes that the test adds: latents of both clips, and their sound.
GUIDED, FREE, GUIDED_SOUND, FREE_SOUND = "guided", "free", "guided_sound", "free_sound"


@pytest.fixture(scope="module")
def info(server):
    known = server.get("/object_info")
    skip_unless_known(NAME, known)
    return known


@pytest.fixture(scope="module")
def bundled(info, to_prompt):
    return to_prompt(read(NAME), info)


def inputs_of_only(prompt, kind):
    return prompt[only(nodes_of(prompt, kind))]["inputs"]


def samplers(prompt):
    """The samplers of the guided clip and of the other one."""
    titles = {str(node["id"]): node.get("title") for node in read(NAME)["nodes"]}
    found = {titles[number]: number for number in nodes_of(prompt, "SamplerCustomAdvanced")}
    return found["Sample guided"], found["Sample by itself"]


def test_form(info, named_values):
    assert_well_formed(NAME, info, named_values)
    assert_loaders_list_their_models(NAME, info, named_values)


def test_what_stands_in_the_graph_fits_together(bundled):
    """Each person has words of the prompt and a place of its own; masks have the video's size and length."""
    text = inputs_of_only(bundled, "PrimitiveStringMultiline")["value"]
    persons = inputs_of_only(bundled, "PrimitiveString")["value"].split(", ")
    made, path = inputs_of_only(bundled, "MiniMaxH3ImageToVideo"), inputs_of_only(bundled, "MGV_PathMasks")
    drawn = json.loads(path["paths"])
    assert len(persons) == 2 and all(words in text for words in persons)
    assert [person["label"] for person in drawn] == persons
    assert drawn[0]["keyframes"] != drawn[1]["keyframes"]
    assert (path["width"], path["height"], path["frames"]) == (made["width"], made["height"], made["length"])
    assert made["length"] % 17 == 5
    patch = inputs_of_only(bundled, "MGV_PatchAttention")
    assert patch["prompt"] == made["prompt"] and patch["clip"] == made["clip"]
    assert patch["positive"] == [only(nodes_of(bundled, "MiniMaxH3ImageToVideo")), 0]


def test_both_clips_are_sampled_alike(bundled):
    found = []
    for number in samplers(bundled):
        inputs = dict(bundled[number]["inputs"])
        guider = dict(bundled[inputs.pop("guider")[0]]["inputs"])
        found.append((inputs, {key: value for key, value in guider.items() if key != "model"}))
    assert found[0] == found[1]


def test_fast_is_the_lora_and_eight_steps(info, to_prompt):
    """What the switches choose, as the bundled graph has them and when *fast* is on."""
    for fast, steps in ((False, 20), (True, 8)):
        workflow = read(NAME)
        holder = only(node for node in workflow["nodes"] if any(end["name"] == "fast" for end in node["inputs"]))
        assert holder["widgets_values"][0] is False
        holder["widgets_values"][0] = fast
        prompt = to_prompt(workflow, info)
        side = "on_true" if fast else "on_false"
        switches = [prompt[number]["inputs"] for number in nodes_of(prompt, "ComfySwitchNode")]
        assert [inputs["switch"] for inputs in switches] == [fast, fast]
        sources = [prompt[inputs[side][0]] for inputs in switches]
        kinds = ["LoraLoaderModelOnly" if fast else "UNETLoader", "PrimitiveInt"]
        assert [node["class_type"] for node in sources] == kinds and sources[1]["inputs"]["value"] == steps


@pytest.fixture(scope="module")
def prompt(info, bundled):
    """Tiny models, sizes and steps; the latents of both clips are saved."""
    small = copy.deepcopy(bundled)
    for seed, node in enumerate(small.values()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind in STAND_INS:
            stand_in(node, info, "minimax", seed)
        if kind == "MiniMaxH3ImageToVideo":
            inputs |= {**SIZE, "length": FRAMES}
        if kind == "MGV_PathMasks":
            inputs |= {**SIZE, "frames": FRAMES}
        if kind == "BasicScheduler":
            inputs["steps"] = STEPS
    guided, free = samplers(small)
    save_latents(small, [guided, 0], GUIDED, GUIDED_SOUND)
    save_latents(small, [free, 0], FREE, FREE_SOUND)
    return small


@pytest.fixture(scope="module")
def run(server, prompt):
    server.empty_cache()
    found = server.run(prompt)
    assert found.succeeded, found.error
    return found


def with_inputs(prompt, kind, **values):
    """A copy in which the node of a kind has other values."""
    changed = copy.deepcopy(prompt)
    inputs_of_only(changed, kind).update(values)
    return changed


def test_it_runs_to_the_end_with_sound(server, prompt, run):
    video, sound = saved_latents(server, run, GUIDED), saved_latents(server, run, GUIDED_SOUND)
    free, free_sound = saved_latents(server, run, FREE), saved_latents(server, run, FREE_SOUND)
    assert video.shape == free.shape == (1, 24, 7, 4, 6) and sound.shape == free_sound.shape == (1, 32, 2, 37)
    assert video.isfinite().all() and sound.isfinite().all()
    assert (video - free).abs().max() > 1e-4 * free.abs().max()
    for number in nodes_of(prompt, "SaveVideo"):
        assert saved_sound(server, run, number) > 0.5 * FRAMES / 24.0
    assert len(run.outputs[only(nodes_of(prompt, "PreviewImage"))]["images"]) == 7
    (report,) = texts(run, prompt)
    assert "old fisherman in a yellow raincoat" in report and "young woman in a red dress" in report


def test_at_strength_zero_both_clips_are_one(server, prompt):
    zero = server.run(with_inputs(prompt, "MGV_MaskToAttentionBias", strength=0.0))
    assert zero.succeeded, zero.error
    for guided, free in ((GUIDED, FREE), (GUIDED_SOUND, FREE_SOUND)):
        assert torch.equal(saved_latents(server, zero, guided), saved_latents(server, zero, free))


def test_words_and_places_belong_together(server, prompt, run):
    """Persons that change places make another clip; named in the other order with their places, the same one."""
    drawn = json.loads(inputs_of_only(prompt, "MGV_PathMasks")["paths"])
    places = [person["keyframes"] for person in drawn]
    exchanged = [{**person, "keyframes": place} for person, place in zip(drawn, places[::-1], strict=True)]
    words = ", ".join(person["label"] for person in drawn[::-1])
    other = server.run(with_inputs(prompt, "MGV_PathMasks", paths=json.dumps(exchanged)))
    again = with_inputs(prompt, "MGV_PathMasks", paths=json.dumps(drawn[::-1]))
    again = server.run(with_inputs(again, "PrimitiveString", value=words))
    assert other.succeeded and again.succeeded, (other.error, again.error)
    first = saved_latents(server, run, GUIDED)
    assert (saved_latents(server, other, GUIDED) - first).abs().max() > 1e-4 * first.abs().max()
    torch.testing.assert_close(saved_latents(server, again, GUIDED), first, rtol=1e-4, atol=1e-4)
