"""The bundled workflows of long video: well formed, and run by a real ComfyUI.

The Toybox graphs run as bundled but for frames and steps; Wan's loaders are replaced by tiny random models.
"""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
import torch
from bundled_graphs import (
    STAND_INS,
    assert_loaders_list_their_models,
    assert_well_formed,
    nodes_of,
    only,
    read,
    saved_latents,
)
from saved_graphs import inputs_of

pytestmark = pytest.mark.comfy

TOYBOX, WAN, PROMPTS = "long_video_toybox", "wan_2_1_long_video", "prompts_over_time_toybox"
names = pytest.mark.parametrize("name", [TOYBOX, WAN, PROMPTS])
with_free_long = pytest.mark.parametrize("name", [TOYBOX, WAN])
# Latents that the tests save.
DIRECT, LONG = "direct", "long"
OTHER_OUTPUTS = ("MGV_SaveLongVideo", "SaveVideo", "PreviewImage")


@pytest.fixture(scope="module")
def host(server):
    # Graphs of other modules may have run the same nodes.
    server.empty_cache()
    return server


@pytest.fixture(scope="module")
def info(host):
    return host.get("/object_info")


@names
def test_form(name, info, named_values):
    assert_well_formed(name, info, named_values)
    prompts = [node for node in read(name)["nodes"] if node["type"] == "PrimitiveStringMultiline"]
    # Where prompts follow one another, they stand in their own node.
    assert len(prompts) == (name != PROMPTS)
    if name == WAN:
        assert_loaders_list_their_models(name, info, named_values)


@with_free_long
def test_free_noise_and_free_long_share_a_window(name, info, to_prompt):
    """That of the model: 21 latent frames of Wan, the 8 of the Toybox's config."""
    prompt = to_prompt(read(name), info)
    number = only(nodes_of(prompt, "MGV_FreeLong"))
    long = prompt[number]["inputs"]
    sampler = only(node for node in prompt.values() if node["inputs"].get("model") == [number, 0])
    noise = prompt[sampler["inputs"]["noise"][0]]["inputs"]
    frames = noise["frames"] if name == WAN else prompt[noise["frames"][0]]["inputs"]["value"]
    assert noise["mode"] == "freenoise" and noise["window"] == {TOYBOX: 8, WAN: 21}[name]
    assert (long["window"], long["strength"]) == (0, 1.0)
    assert (frames if name == TOYBOX else (frames - 1) // 4 + 1) > noise["window"]
    assert nodes_of(prompt, "MGV_SaveLongVideo")


def changed(prompt: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    """A copy in which all nodes of a kind have other values."""
    other = copy.deepcopy(prompt)
    for number in nodes_of(other, kind):
        other[number]["inputs"].update(values)
    return other


def saving_latents(prompt: dict[str, Any]) -> dict[str, Any]:
    """A graph that also saves what each sampler makes."""
    other = copy.deepcopy(prompt)
    for number in nodes_of(prompt, "MGV_SampleVideo"):
        model = prompt[prompt[number]["inputs"]["model"][0]]
        name = LONG if model["class_type"] == "MGV_FreeLong" else DIRECT
        other[name] = {"class_type": "SaveLatent", "inputs": {"samples": [number, 0], "filename_prefix": name}}
    return other


def latents(host, run, name):
    assert run.succeeded, run.error
    return saved_latents(host, run, name)


def frames_of(path):
    import av

    with av.open(str(path)) as film:
        return sum(1 for _ in film.decode(video=0))


@pytest.fixture(scope="module")
def prompt(info, to_prompt, toybox_folder):
    """The Toybox graph with few frames and steps."""
    prompt = to_prompt(read(TOYBOX), info)
    prompt = changed(changed(prompt, "MGV_VideoNoise", frames=11), "MGV_SampleVideo", steps=2)
    return saving_latents(prompt)


@pytest.fixture(scope="module")
def first_run(host, prompt):
    return host.run(prompt)


class TestToybox:
    def test_runs_to_the_end(self, host, prompt, first_run):
        direct, long = latents(host, first_run, DIRECT), latents(host, first_run, LONG)
        assert direct.shape == long.shape == (1, 4, 11, 16, 16) and bool(long.isfinite().all())
        assert float((direct - long).abs().max()) > 0.01
        for kind in ("MGV_SaveLongVideo", "SaveVideo"):
            saved = first_run.outputs[only(nodes_of(prompt, kind))]["images"]
            assert [frames_of(host.path_of(entry)) for entry in saved] == [11]
        for number in nodes_of(prompt, "PreviewImage"):
            assert len(first_run.outputs[number]["images"]) == 11

    def test_strength_zero_and_short_clips_are_the_direct_film(self, host, prompt, first_run):
        same_noise = changed(prompt, "MGV_VideoNoise", mode="freenoise")
        zero = host.run(changed(same_noise, "MGV_FreeLong", strength=0.0))
        assert torch.equal(latents(host, zero, LONG), latents(host, zero, DIRECT))
        # FreeNoise, too, leaves clips of the model's own length as they are.
        short = host.run(changed(prompt, "MGV_VideoNoise", frames=8))
        assert torch.equal(latents(host, short, LONG), latents(host, short, DIRECT))

    def test_cancelled_and_queued_again(self, host, prompt, first_run):
        before = latents(host, first_run, LONG)
        endless = changed(changed(prompt, "MGV_SampleVideo", steps=500), "MGV_FreeLong", end_percent=1.0)
        del endless[DIRECT]
        # Only the film with FreeLong is left to make.
        endless = {key: node for key, node in endless.items() if node["class_type"] not in OTHER_OUTPUTS}
        stopped = asyncio.run(cancelled_after_some_steps(host, endless))
        assert "execution_interrupted" in stopped.messages
        again = host.run(changed(prompt, "MGV_VideoNoise", seed=7))
        assert not torch.equal(latents(host, again, LONG), before)
        again = host.run(prompt)
        sampler = prompt[LONG]["inputs"]["samples"][0]
        assert sampler not in again.cached
        assert torch.equal(latents(host, again, LONG), before)

    def test_errors_are_one_clear_sentence(self, host, prompt, first_run):
        run = host.run(changed(prompt, "MGV_FreeLong", blocks="block.3"))
        assert "'block.3', which fits no block of this model" in run.error
        run = host.run(changed(prompt, "MGV_FreeLong", variant="FreeLong++", bands="2, 4"))
        assert "give window lengths that ascend from 1" in run.error

    def test_in_context_windows(self, host, prompt, first_run):
        """The node that is named in Wan's note, in place of FreeLong."""
        windows = copy.deepcopy(prompt)
        node = windows[only(nodes_of(windows, "MGV_FreeLong"))]
        node["class_type"] = "MGV_FreeLongWindows"
        node["inputs"] |= {"context_length": 1.25, "context_overlap": 0.5}
        node["inputs"] |= {"context_schedule": "standard_static", "fuse_method": "pyramid"}
        run = host.run(windows)
        film = latents(host, run, LONG)
        assert bool(film.isfinite().all()) and not torch.equal(film, latents(host, first_run, LONG))


async def cancelled_after_some_steps(host, prompt):
    import aiohttp

    address = host.url.replace("http", "ws") + "/ws?clientId=long"
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        answer = await session.post(host.url + "/prompt", json={"prompt": prompt, "client_id": "long"})
        prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["type"] == "progress" and event["data"]["value"] >= 2:
                await session.post(host.url + "/interrupt")
                break
    return await asyncio.to_thread(host.wait, prompt_id)


class TestWan:
    def test_runs_with_a_tiny_model(self, host, info, to_prompt):
        prompt = to_prompt(read(WAN), info)
        for seed, node in enumerate(prompt.values()):
            kind, inputs = node["class_type"], node["inputs"]
            if kind in STAND_INS:
                stand_in = STAND_INS[kind]
                known = inputs_of(info[stand_in])
                own = {"family": "wan", "seed": seed} if "family" in known else {}
                node["class_type"] = stand_in
                node["inputs"] = {**{key: value for key, value in inputs.items() if key in known}, **own}
        prompt = changed(prompt, "MGV_VideoNoise", width=96, height=64, frames=21, window=2, stride=1)
        # Six latent frames in windows of two.
        prompt = changed(prompt, "MGV_FreeLong", window=2)
        prompt = saving_latents(changed(prompt, "MGV_SampleVideo", steps=2))
        run = host.run(prompt)
        film = latents(host, run, LONG)
        assert film.shape == (1, 16, 6, 8, 12) and bool(film.isfinite().all())
        saved = run.outputs[only(nodes_of(prompt, "MGV_SaveLongVideo"))]["images"]
        assert [frames_of(host.path_of(entry)) for entry in saved] == [21]
        zero = latents(host, host.run(changed(prompt, "MGV_FreeLong", strength=0.0)), LONG)
        assert float((film - zero).abs().max()) > 1e-3 * float(zero.abs().max())
        # The model's own 21 latent frames are more than this film has.
        own = latents(host, host.run(changed(prompt, "MGV_FreeLong", window=0)), LONG)
        assert torch.equal(own, zero)


@pytest.fixture(scope="module")
def three_prompts(info, to_prompt, toybox_folder):
    """The bundled graph with fewer steps and frames, so that two windows hold the film."""
    prompt = to_prompt(read(PROMPTS), info)
    prompt = changed(changed(prompt, "MGV_VideoNoise", frames=28), "MGV_SampleVideo", steps=8)
    schedule = prompt[only(nodes_of(prompt, "MGV_PromptSchedule"))]["inputs"]
    lines = [line.partition(": ")[2] for line in schedule["schedule"].splitlines()]
    schedule["schedule"] = "\n".join(f"{9 * number}: {line}" for number, line in enumerate(lines))
    schedule["overlap"] = 2
    return prompt


@pytest.fixture(scope="module")
def film(host, three_prompts):
    run = host.run(three_prompts)
    assert run.succeeded, run.error
    return run


class TestPromptsOverTime:
    """Three prompts in one film, in context windows with FreeLong."""

    def test_what_stands_in_the_graph_fits_together(self, info, to_prompt):
        prompt = to_prompt(read(PROMPTS), info)
        noise, schedule, windows, sampler = (
            only(nodes_of(prompt, kind))
            for kind in ("MGV_VideoNoise", "MGV_PromptSchedule", "MGV_FreeLongWindows", "MGV_SampleVideo")
        )
        inputs = prompt[sampler]["inputs"]
        assert (inputs["model"], inputs["positive"]) == ([windows, 0], [schedule, 1])
        assert prompt[windows]["inputs"]["model"] == [schedule, 0]
        starts = [int(line.partition(":")[0]) for line in prompt[schedule]["inputs"]["schedule"].splitlines()]
        noise, windows = prompt[noise]["inputs"], prompt[windows]["inputs"]
        # The Toybox's own length is 8.
        assert (noise["frames"], noise["window"], windows["window"], windows["context_length"]) == (64, 8, 0, 2.0)
        assert len(starts) == 3 and starts[-1] < 64

    def test_runs_to_the_end(self, host, three_prompts, film):
        for kind in ("MGV_SaveLongVideo", "SaveVideo"):
            saved = film.outputs[only(nodes_of(three_prompts, kind))]["images"]
            assert [frames_of(host.path_of(entry)) for entry in saved] == [28]
        report = film.outputs[only(nodes_of(three_prompts, "PreviewAny"))]["text"][0]
        assert "frames 0 to 8: a yellow" in report and "frames 18 to the end: a white" in report

    def test_colours_change_where_the_schedule_says(self, host, three_prompts, film):
        """The brightest reds of a picture are of the square: the sea has none."""
        from PIL import Image

        shown = film.outputs[only(nodes_of(three_prompts, "PreviewImage"))]["images"]
        assert len(shown) == 28
        colours = []
        for entry in shown:
            with Image.open(host.path_of(entry)) as picture:
                pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3)
            brightest = pixels[:, 0].float().topk(len(pixels) // 50).indices
            colours.append(pixels[brightest].float().mean(dim=0) / 255)
        yellow, red, white = (torch.stack(colours[9 * place + 2 : 9 * place + 7]).mean(dim=0) for place in range(3))
        assert yellow[0] > 0.6 and yellow[1] > 0.6 and yellow[2] < 0.4, yellow
        assert red[0] > 0.6 and red[1] < 0.4 and red[2] < 0.4, red
        assert float(white.min()) > 0.6, white

    def test_a_prompt_behind_the_end_is_named(self, host, three_prompts):
        run = host.run(changed(three_prompts, "MGV_VideoNoise", frames=17))
        assert "a prompt begins at frame 18 but the film has 17 frames" in run.error
