"""Finding, following and masking in a real ComfyUI: the bundled workflow, and a graph of every other such node."""

from __future__ import annotations

import asyncio
import copy
import json

import pytest
from bundled_graphs import nodes_of, only

pytestmark = pytest.mark.comfy

FRAMES = 12
WORDS = "red ball, yellow triangle"


def read_film(server, entry):
    import av

    with av.open(str(server.path_of(entry))) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


@pytest.fixture(scope="module")
def film_file(server, write_film):
    return write_film(server.folder / "input" / "film.mp4", FRAMES)


@pytest.fixture(scope="module")
def bundled(root, film_file, object_info, to_prompt):
    """The workflow as bundled, but for the Toybox's models and words."""
    workflow = json.loads((root / "workflows" / "find_follow_mask.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, object_info)
    for kind in ("MGV_LoadGroundingDINO", "MGV_LoadSAM"):
        prompt[only(nodes_of(prompt, kind))]["inputs"]["model_name"] = "Toybox"
    prompt[only(nodes_of(prompt, "PrimitiveString"))]["inputs"]["value"] = WORDS
    assert prompt[only(nodes_of(prompt, "LoadVideo"))]["inputs"] == {"file": film_file.name}
    return prompt


@pytest.fixture(scope="module")
def every_node(film_file):
    """Everything that the workflow does not use, end to end."""
    return {
        "1": {"class_type": "LoadVideo", "inputs": {"file": film_file.name}},
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
        "3": {"class_type": "MGV_LoadSAM", "inputs": {"model_name": "Toybox"}},
        "4": {
            "class_type": "MGV_TrackPrompt",
            "inputs": {
                "image": ["2", 0], "frame": 6, "object": 0, "label": "ball", "points": '[{"x": 34, "y": 24}]',
                "negative_points": "",
            },
        },
        "5": {
            "class_type": "MGV_TrackPrompt",
            "inputs": {
                "image": ["2", 0], "frame": 2, "object": 0, "label": "triangle", "points": '[{"x": 44, "y": 46}]',
                "negative_points": '[{"x": 19, "y": 24}]', "prompts": ["4", 0],
            },
        },
        "6": {
            "class_type": "MGV_TrackMasks",
            "inputs": {
                "model": ["3", 0], "image": ["2", 0], "points": "", "prompt_frame": 0, "max_gap": -1, "extend": -1,
                "minimum_seen": 2, "max_objects": 0, "soft": False, "prompts": ["5", 0], "keep_on_disk": True,
            },
        },
        "7": {"class_type": "MGV_SplitTracks", "inputs": {"tracks": ["6", 0]}},
        "8": {"class_type": "MaskToImage", "inputs": {"mask": ["7", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
        "10": {"class_type": "MGV_MaskToTracks", "inputs": {"mask": ["6", 1], "label": "both", "tracks": ["6", 0]}},
        "11": {
            "class_type": "MGV_SelectObjects",
            "inputs": {
                "tracks": ["10", 0], "labels": "both", "ids": "", "keep": "all", "count": 1, "minimum_score": 0.0,
                "minimum_area": 0.0, "minimum_frames": 0, "invert": False,
            },
        },
        "12": {
            "class_type": "MGV_PreviewTracks",
            "inputs": {
                "image": ["2", 0], "tracks": ["11", 0], "opacity": 0.3, "outline": True, "labels": True, "count": 4,
            },
        },
        "13": {
            "class_type": "MGV_BoxesToBBOX",
            "inputs": {
                "boxes": ["7", 3], "format": "xyxy", "nesting": "list_per_frame", "frame": 0, "whole_pixels": True,
            },
        },
        "14": {
            "class_type": "MGV_BBOXToBoxes",
            "inputs": {"bbox": ["13", 0], "format": "xyxy", "nesting": "list_per_frame", "label": "thing"},
        },
        "15": {
            "class_type": "MGV_ToSEGS",
            "inputs": {"boxes": ["14", 0], "image": ["2", 0], "frame": 5, "crop_factor": 2.0},
        },
        "16": {"class_type": "MGV_FromSEGS", "inputs": {"segs": ["15", 0], "frame": 5, "image": ["2", 0]}},
        "17": {"class_type": "MaskToImage", "inputs": {"mask": ["16", 1]}},
        "18": {"class_type": "PreviewImage", "inputs": {"images": ["17", 0]}},
        "19": {"class_type": "PreviewImage", "inputs": {"images": ["5", 1]}},
        "20": {"class_type": "PreviewAny", "inputs": {"source": ["11", 2]}},
        "21": {
            "class_type": "MGV_RefineMasks",
            "inputs": {
                "tracks": ["6", 0], "image": ["2", 0], "fill_gaps": 2, "median_frames": 3, "hysteresis_low": 0.0,
                "hysteresis_high": 0.0, "grow": 1, "feather": 2.0, "component_share": 1.0, "fill_holes": -1,
                "keep_on_disk": True,
            },
        },
        "22": {"class_type": "MaskPreview", "inputs": {"mask": ["21", 1]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def bundled_run(server, bundled):
    return server.run(bundled)


@pytest.fixture(scope="module")
def every_run(server, every_node):
    return server.run(every_node)


class TestWorkflow:
    def test_three_films_and_a_strip(self, server, bundled, bundled_run):
        assert bundled_run.succeeded, bundled_run.error
        films = {}
        for number in nodes_of(bundled, "SaveVideo"):
            prefix = bundled[number]["inputs"]["filename_prefix"]
            films[prefix] = read_film(server, only(bundled_run.outputs[number]["images"]))
        drawn, masks, cut = (films[f"video/find_follow_{name}"] for name in ("objects", "mask", "cut_out"))
        assert [len(film) for film in (drawn, masks, cut)] == [FRAMES] * 3
        assert drawn[0].shape == (256, 256, 3) and masks[0].shape == cut[0].shape == (64, 64, 3)
        # Ball and triangle are 7.7 % and 7 % of the picture.
        assert all(0.10 < (mask > 127).mean() < 0.20 for mask in masks)
        assert masks[0][24, 12].min() > 200 and masks[0][60, 10].max() < 50
        assert cut[0][24, 12, 0] > 150 and cut[0][60, 10, 1] > 130 > 100 > cut[0][60, 10, 0]
        assert len(bundled_run.outputs[only(nodes_of(bundled, "MGV_PreviewTracks"))]["images"]) == 1

    def test_reports(self, bundled, bundled_run):
        found, followed, chosen = (bundled_run.outputs[number]["text"][0] for number in nodes_of(bundled, "PreviewAny"))
        assert "Looked at" in found and "red ball" in found
        assert f"seen in {FRAMES} of {FRAMES} frames" in followed and "Kept 2 of 2 objects" in chosen

    def test_unchanged_runs_nothing_again(self, server, bundled, bundled_run):
        again = server.run(bundled)
        assert again.succeeded and again.cached == set(bundled)

    def test_another_choice_does_not_track_again(self, server, bundled, bundled_run):
        changed = copy.deepcopy(bundled)
        changed[only(nodes_of(changed, "MGV_SelectObjects"))]["inputs"]["labels"] = "red *"
        again = server.run(changed)
        assert again.succeeded and again.cached >= set(nodes_of(changed, "MGV_TrackMasks"))
        assert "Kept 1 of 2 objects" in again.outputs[nodes_of(changed, "PreviewAny")[-1]]["text"][0]

    def test_nothing_found_still_makes_every_film(self, server, bundled):
        changed = copy.deepcopy(bundled)
        changed[only(nodes_of(changed, "MGV_DetectObjects"))]["inputs"]["box_threshold"] = 1.0
        run = server.run(changed)
        assert run.succeeded, run.error
        for number in nodes_of(changed, "SaveVideo"):
            film = read_film(server, only(run.outputs[number]["images"]))
            assert len(film) == FRAMES
            if changed[number]["inputs"]["filename_prefix"].endswith("mask"):
                assert max(frame.max() for frame in film) < 20

    def test_one_frame(self, server, bundled, write_film):
        write_film(server.folder / "input" / "one.mp4", 1)
        changed = copy.deepcopy(bundled)
        changed[only(nodes_of(changed, "LoadVideo"))]["inputs"]["file"] = "one.mp4"
        run = server.run(changed)
        assert run.succeeded, run.error
        for number in nodes_of(changed, "SaveVideo"):
            assert len(read_film(server, only(run.outputs[number]["images"]))) == 1


class TestEveryNode:
    def test_all_run(self, server, every_node, every_run):
        assert every_run.succeeded, every_run.error
        # Two objects of twelve frames each.
        assert len(every_run.outputs["9"]["images"]) == 2 * FRAMES
        assert len(every_run.outputs["18"]["images"]) == FRAMES and len(every_run.outputs["19"]["images"]) == 1
        assert "Kept 1 of 3 objects" in every_run.outputs["20"]["text"][0]
        assert not [path for path in (server.folder / "temp").iterdir() if path.suffix != ".png"]

    def test_unchanged_runs_nothing_again(self, server, every_node, every_run):
        assert server.run(every_node).cached == set(every_node)

    @pytest.mark.parametrize(
        "node,values,message",
        [
            ("4", {"frame": 90}, "frame is 90 but the video has 12 frames; use 0 to 11"),
            ("4", {"points": '[{"x": 400, "y": 3}]'}, "point (400, 3) in frame 6 lies outside the picture of 64 x 64"),
            ("4", {"points": "here"}, "points is not JSON"),
            ("6", {"mask": ["40", 0]}, "there are 3 masks for 12 frames"),
            ("6", {"phrases": "cat"}, "Toybox does not understand words"),
            ("11", {"ids": "first"}, "ids has 'first', which is neither a number nor a range"),
            ("15", {"frame": -1}, "the whole video, which boxes cannot be"),
            ("21", {"image": ["41", 0]}, "there are 1 frames and masks for 12"),
        ],
    )
    def test_errors_are_one_clear_sentence(self, server, every_node, node, values, message):
        broken = copy.deepcopy(every_node)
        broken["41"] = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        broken["42"] = {
            "class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 255},
        }  # fmt: skip
        broken["40"] = {"class_type": "ImageToMask", "inputs": {"image": ["42", 0], "channel": "blue"}}
        broken[node]["inputs"] |= values
        run = server.run(broken)
        assert not run.succeeded and message in run.error

    def test_four_channels(self, server, every_node):
        changed = {number: every_node[number] for number in ("1", "2", "3")}
        changed |= {
            "30": {"class_type": "ImageToMask", "inputs": {"image": ["2", 0], "channel": "red"}},
            "31": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["2", 0], "alpha": ["30", 0]}},
            "6": copy.deepcopy(every_node["6"]),
            "32": {"class_type": "MaskPreview", "inputs": {"mask": ["6", 1]}},
        }
        del changed["6"]["inputs"]["prompts"]
        changed["6"]["inputs"] |= {"image": ["31", 0], "points": '[{"x": 12, "y": 24}]'}
        run = server.run(changed)
        assert run.succeeded, run.error
        assert len(run.outputs["32"]["images"]) == FRAMES

    def test_cancel_in_the_middle_of_tracking(self, server, every_node, write_film):
        write_film(server.folder / "input" / "long.mp4", 400)
        prompt = {number: copy.deepcopy(every_node[number]) for number in ("1", "2", "3", "4", "6")}
        prompt["1"]["inputs"]["file"] = "long.mp4"
        prompt["6"]["inputs"]["prompts"] = ["4", 0]
        prompt["7"] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 3]}}
        run, steps = asyncio.run(self._cancel_while_tracking(server, prompt))
        assert "execution_interrupted" in run.messages
        # The frame that is being worked on is finished, and no other.
        assert steps[-1] < 400 and len(steps) <= 6
        prompt["1"]["inputs"]["file"] = "film.mp4"
        assert server.run(prompt).succeeded

    async def _cancel_while_tracking(self, server, prompt):
        import aiohttp

        address = server.url.replace("http", "ws") + "/ws?clientId=tracking"
        steps = []
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            answer = await session.post(server.url + "/prompt", json={"prompt": prompt, "client_id": "tracking"})
            prompt_id = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if event["type"] in ("execution_interrupted", "execution_error", "execution_success"):
                    break
                if event["type"] == "progress" and event["data"]["node"] == "6":
                    steps.append(event["data"]["value"])
                    if len(steps) == 3:
                        await session.post(server.url + "/interrupt")
        return await asyncio.to_thread(server.wait, prompt_id), steps
