"""The bundled workflow in a real ComfyUI: through the API, again, cancelled, and from the browser."""

from __future__ import annotations

import asyncio
import copy
import io
import json

import pytest
import torch
from bundled_graphs import nodes_of
from saved_graphs import inputs_of, later_widgets

pytestmark = pytest.mark.comfy

# The same graph at a fraction of the work.
FEW_STEPS = 4


def set_value(prompt, kind, name, value):
    changed = copy.deepcopy(prompt)
    for number in nodes_of(changed, kind):
        changed[number]["inputs"][name] = value
    return changed


@pytest.fixture(scope="module")
def short_prompt(workflow_prompt, toybox_folder, root):
    """The bundled workflow with few steps."""
    for name in ("detector", "segmenter"):
        if not (root / "toybox" / name).is_dir():
            pytest.skip(f"this checkout has no Toybox {name}")
    prompt = set_value(workflow_prompt, "MGV_SampleVideo", "steps", FEW_STEPS)
    return set_value(prompt, "MGV_Regenerate", "steps", FEW_STEPS)


@pytest.fixture(scope="module")
def first_run(server, short_prompt):
    return server.run(short_prompt)


def pictures(server, run, number):
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    entries = run.outputs[number]["images"]
    return torch.stack([to_tensor(Image.open(server.path_of(entry)).convert("RGB")) for entry in entries])


def sampling_prompt(steps, seed=1, prefix="latent", mode="focus", strength=1.0, model_from="patched"):
    """Load, make noise, guide by a painted mask, sample, save the latents."""
    return {
        "1": {"class_type": "MGV_LoadVideoModel", "inputs": {"model_name": "Toybox"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball moves left on sand"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {
            "class_type": "MGV_VideoNoise",
            "inputs": {
                "seed": seed, "frames": 4, "width": 32, "height": 32, "mode": "plain", "window": 16, "stride": 4,
                "shared": 0.2, "batch_size": 1, "vae": ["1", 2],
            },
        },
        "5": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 16, "height": 16}},
        "6": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 32, "height": 32}},
        "7": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["6", 0], "source": ["5", 0], "x": 8, "y": 8, "operation": "add"},
        },
        "8": {
            "class_type": "MGV_MaskToAttentionBias",
            "inputs": {
                "mask": ["7", 0], "phrases": "red ball", "mode": mode, "strength": strength, "start_percent": 0.0,
                "end_percent": 1.0, "blocks": "all", "rows": "both", "hard": False,
            },
        },
        "9": {
            "class_type": "MGV_PatchAttention",
            "inputs": {"model": ["1", 0], "guide": ["8", 0], "clip": ["1", 1], "prompt": "a red ball moves left on "
            "sand"},
        },
        "10": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["9" if model_from == "patched" else "1", 0], "seed": seed, "steps": steps, "cfg": 4.0,
                "sampler_name": "ddim", "scheduler": "ddim_uniform", "positive": ["2", 0], "negative": ["3", 0],
                "latent_image": ["4", 1], "denoise": 1.0,
            },
        },
        "11": {"class_type": "SaveLatent", "inputs": {"samples": ["10", 0], "filename_prefix": prefix}},
    }  # fmt: skip


def saved_latents(server, run):
    from safetensors.torch import load_file

    return load_file(server.path_of(run.outputs["11"]["latents"][0]))["latent_tensor"]


class TestWorkflow:
    def test_runs_to_the_end(self, server, first_run, short_prompt):
        assert first_run.succeeded, first_run.error
        saved = [first_run.outputs[number]["images"][0] for number in nodes_of(short_prompt, "SaveVideo")]
        assert len(saved) == 3
        assert all(server.path_of(entry).stat().st_size > 1000 for entry in saved)
        for number in nodes_of(short_prompt, "PreviewImage"):
            assert len(first_run.outputs[number]["images"]) == 8
        for number in nodes_of(short_prompt, "PreviewAny"):
            assert first_run.outputs[number]["text"][0]

    def test_unchanged_runs_nothing_again(self, server, first_run, short_prompt):
        again = server.run(short_prompt)
        assert again.succeeded
        assert again.cached == set(short_prompt)

    def test_another_phrase_keeps_the_first_film(self, server, first_run, short_prompt):
        number = next(number for number in nodes_of(short_prompt, "PrimitiveString"))
        changed = copy.deepcopy(short_prompt)
        words = changed[number]["inputs"]["value"].split()
        changed[number]["inputs"]["value"] = words[-1]
        run = server.run(changed)
        assert run.succeeded, run.error
        assert set(nodes_of(short_prompt, "MGV_SampleVideo")) <= run.cached

    def test_no_such_object_goes_on_unguided_and_says_so(self, server, first_run, short_prompt):
        changed = set_value(short_prompt, "MGV_DetectObjects", "box_threshold", 1.0)
        run = server.run(changed)
        assert run.succeeded, run.error
        texts = [run.outputs[number]["text"][0] for number in nodes_of(changed, "PreviewAny")]
        assert any("not found in any" in text for text in texts) and any("unguided" in text for text in texts)


async def watched(server, prompt, cancel_after=None):
    """Run a prompt as the browser does, with previews.

    Args:
        cancel_after: interrupt after that step of a node.

    Returns:
        What came of it, (node, step, steps) of all progress, and the previews' JPEG files.
    """
    import aiohttp

    address = server.url.replace("http", "ws") + "/ws?clientId=test"
    steps, previews = [], []
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        body = {"prompt": prompt, "client_id": "test", "extra_data": {"preview_method": "latent2rgb"}}
        answer = await session.post(server.url + "/prompt", json=body)
        prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                # Two numbers stand before the picture: that it is one, and of which format.
                previews.append(message.data[8:])
                continue
            event = json.loads(message.data)
            if event["type"] == "progress":
                data = event["data"]
                steps.append((data["node"], data["value"], data["max"]))
                if data["value"] == cancel_after:
                    await session.post(server.url + "/interrupt")
            if event["type"] in ("execution_success", "execution_interrupted", "execution_error"):
                break
    return await asyncio.to_thread(server.wait, prompt_id), steps, previews


SAMPLERS = ("MGV_SampleVideo", "MGV_Regenerate", "MGV_MaskGuidedExtend")


def with_sampler(prompt, kind, info):
    """The graph with a sampler of ours as node 10, its widgets as they begin."""

    def node(kind, **inputs):
        return {"class_type": kind, "inputs": dict(later_widgets(inputs_of(info[kind]), {})) | inputs}

    changed, steps = copy.deepcopy(prompt), prompt["10"]["inputs"]["steps"]
    if kind == "MGV_MaskGuidedExtend":
        parts = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "guide": ["20", 0]}
        size = {"rounds": 1, "frames": 4, "width": 32, "height": 32}
        changed["20"] = node("MGV_DynamicMaskGuidance", mask=["7", 0], phrases="red ball")
        changed["10"] = node(kind, **parts, **size, steps=steps, prompt="a red ball moves left on sand")
        changed["11"] = node("PreviewImage", images=["10", 0])
    else:
        wires = {"positive": ["2", 0], "negative": ["3", 0], "noise": ["4", 0], "latent": ["4", 1]}
        changed["10"] = node(kind, model=["9", 0], **wires, steps=steps)
    return changed


class TestWhileItRuns:
    """What the user sees while a sampler runs, and that it can be stopped."""

    @pytest.mark.parametrize("kind", ["KSampler", *SAMPLERS])
    def test_every_step_moves_the_bar_and_shows_a_picture(self, server, object_info, toybox_folder, kind):
        from PIL import Image

        prompt = sampling_prompt(4, seed=7, prefix="watched")
        if kind != "KSampler":
            prompt = with_sampler(prompt, kind, object_info)
        run, steps, previews = asyncio.run(watched(server, prompt))
        assert run.succeeded, run.error
        assert [value for node, value, of in steps if node == "10" and of == 4][:4] == [1, 2, 3, 4]
        assert len(previews) >= 4
        for preview in previews:
            with Image.open(io.BytesIO(preview)) as picture:
                assert picture.width == picture.height > 0

    @pytest.mark.parametrize("kind", SAMPLERS)
    def test_it_stops_between_steps(self, server, object_info, toybox_folder, kind):
        prompt = with_sampler(sampling_prompt(500, seed=8), kind, object_info)
        run, steps, _ = asyncio.run(watched(server, prompt, cancel_after=3))
        assert "execution_interrupted" in run.messages
        assert max(value for node, value, _ in steps if node == "10") < 100


class TestSampling:
    def test_core_sampler_and_ours_agree(self, server, toybox_folder):
        prompt = sampling_prompt(3, prefix="core", model_from="plain")
        core = saved_latents(server, server.run(prompt))
        prompt["10"] = {
            "class_type": "MGV_SampleVideo",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "noise": ["4", 0], "latent": ["4", 1],
                "steps": 3, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0,
            },
        }  # fmt: skip
        assert torch.equal(core, saved_latents(server, server.run(prompt)))

    def test_core_nodes_accept_model_noise_latents_and_vae(self, server, toybox_folder):
        prompt = sampling_prompt(3, prefix="chain")
        prompt |= {
            "20": {
                "class_type": "CFGGuider",
                "inputs": {"model": ["9", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 4.0},
            },
            "21": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "22": {
                "class_type": "BasicScheduler",
                "inputs": {"model": ["9", 0], "scheduler": "simple", "steps": 3, "denoise": 1.0},
            },
            "23": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["4", 0], "guider": ["20", 0], "sampler": ["21", 0],
                    "sigmas": ["22", 0], "latent_image": ["4", 1],
                },
            },
            "24": {"class_type": "VAEDecode", "inputs": {"samples": ["23", 0], "vae": ["1", 2]}},
            "25": {"class_type": "VAEEncode", "inputs": {"pixels": ["24", 0], "vae": ["1", 2]}},
            "26": {
                "class_type": "VAEDecodeTiled",
                "inputs": {
                    "samples": ["10", 0], "vae": ["1", 2], "tile_size": 64, "overlap": 16,
                    "temporal_size": 64, "temporal_overlap": 8,
                },
            },
            "27": {"class_type": "CreateVideo", "inputs": {"images": ["26", 0], "fps": 8.0}},
            "28": {
                "class_type": "SaveVideo",
                "inputs": {"video": ["27", 0], "filename_prefix": "chain", "format": "auto", "codec": "auto"},
            },
            "29": {"class_type": "PreviewImage", "inputs": {"images": ["26", 0]}},
        }  # fmt: skip
        prompt["10"]["inputs"] |= {"latent_image": ["25", 0], "denoise": 0.5}
        run = server.run(prompt)
        assert run.succeeded, run.error
        assert pictures(server, run, "29").shape == (4, 3, 32, 32)
        assert saved_latents(server, run).shape == (1, 4, 4, 8, 8)
        assert server.path_of(run.outputs["28"]["images"][0]).stat().st_size > 500

    def test_strength_zero_is_bit_identical(self, server, toybox_folder):
        plain = saved_latents(server, server.run(sampling_prompt(3, prefix="plain", model_from="plain")))
        zero = saved_latents(server, server.run(sampling_prompt(3, prefix="zero", strength=0.0)))
        full = saved_latents(server, server.run(sampling_prompt(3, prefix="full")))
        assert torch.equal(plain, zero) and not torch.equal(plain, full)

    def test_cancel_in_the_middle_leaves_the_model_clean(self, server, toybox_folder):
        before = saved_latents(server, server.run(sampling_prompt(5, prefix="before")))
        run, _, _ = asyncio.run(watched(server, sampling_prompt(500, seed=2, prefix="never"), cancel_after=3))
        assert "execution_interrupted" in run.messages
        # Another prefix and seed order: neither the sampler's node nor its result can come from the cache.
        other = sampling_prompt(5, seed=3, prefix="other")
        server.run(other)
        again = server.run(sampling_prompt(5, prefix="again"))
        assert "10" not in again.cached
        assert torch.equal(before, saved_latents(server, again))

    def test_errors_are_one_clear_sentence(self, server, toybox_folder):
        prompt = sampling_prompt(2, prefix="error", mode="cross_text")
        prompt["9"]["inputs"]["prompt"] = "a blue square"
        run = server.run(prompt)
        assert "'red ball' does not occur in the prompt 'a blue square'" in run.error
