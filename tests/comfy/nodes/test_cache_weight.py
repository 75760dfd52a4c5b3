"""Results count with their true size in ComfyUI's cache that frees memory, measured by core's own function."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from guides import plain_guide

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.perception.mask_stack import MaskStack
from mask_guided_video.perception.prompts import ObjectPrompt
from mask_guided_video.perception.tracks import Tracks

pytestmark = pytest.mark.comfy

FRAMES, HEIGHT, WIDTH = 6, 64, 64
# Every pixel of every frame, as bits, with a float and a bool for each frame.
TRACKS_BYTES = FRAMES * HEIGHT * WIDTH // 8 + FRAMES * (4 + 1)
# A guide holds floats.
GUIDE_BYTES = FRAMES * HEIGHT * WIDTH * 4
HELD = {"tracks": TRACKS_BYTES, "guide": GUIDE_BYTES, "prompts": HEIGHT * WIDTH * 4}


def film_mask():
    return torch.ones(FRAMES, HEIGHT, WIDTH)


def result_of(name, **given):
    """First output of a node, with the widgets as they stand in a fresh one."""
    from mask_guided_video import NODE_CLASS_MAPPINGS

    node = NODE_CLASS_MAPPINGS[name]
    widgets = {entry.id: entry.default for entry in node.define_schema().inputs if hasattr(entry, "default")}
    widgets = {key: value for key, value in widgets.items() if value is not None}
    return node.execute(**{**widgets, **given}).args[0]


def whole_picture():
    """A path of a box over the whole picture."""
    place = {"frame": 0, "x": 0.5, "y": 0.5, "width": 2.0, "height": 2.0}
    return json.dumps([{"label": "ball", "shape": "box", "keyframes": [place]}])


MADE = {
    "MGV_PathMasks": ("tracks", Tracks, {"paths": whole_picture, "frames": FRAMES, "width": WIDTH, "height": HEIGHT}),
    "MGV_MaskToTracks": ("tracks", Tracks, {"mask": film_mask}),
    "MGV_MaskSequence": ("tracks", Tracks, {"mask": film_mask}),
    "MGV_RefineMasks": ("tracks", Tracks, {"mask": film_mask}),
    "MGV_SelectObjects": ("tracks", Tracks, {"tracks": lambda: Tracks.from_masks(film_mask())}),
    "MGV_MaskToAttentionBias": ("guide", Guide, {"mask": film_mask}),
    "MGV_DynamicMaskGuidance": ("guide", Guide, {"mask": film_mask}),
    "MGV_TrackPrompt": ("prompts", tuple, {"mask": lambda: film_mask()[:1], "points": ""}),
}


def frees_first(monkeypatch, result, other, old=False):
    """Whether core's cache under pressure frees a result and keeps another one.

    Args:
        old: whether both are of an earlier workflow.
    """
    from comfy_execution import caching

    cache = caching.RAMPressureCache(caching.CacheKeySetInputSignature)
    for number, value in enumerate((result, other)):
        cache.cache[number] = SimpleNamespace(outputs=[[value], ["a report"]])
        cache.used_generation[number], cache.timestamps[number] = cache.generation - old, 0.0
    # Enough, as soon as one entry is gone.
    enough = iter([0, 0, *[100] * 10])
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=next(enough)))
    monkeypatch.setattr(caching, "psutil", memory)
    cache.ram_release(100, free_active=True)
    (left,) = cache.cache
    return left == 1


@pytest.mark.parametrize("node", MADE)
def test_results_weigh_what_they_hold(monkeypatch, node):
    """They go before a tensor that is a byte smaller, and after one that is a byte larger."""
    name, kind, given = MADE[node]
    result = result_of(node, **{key: value() if callable(value) else value for key, value in given.items()})
    assert isinstance(result, kind)
    for extra, goes in ((-1, True), (1, False)):
        tensor = torch.zeros(HELD[name] + extra, dtype=torch.uint8)
        assert frees_first(monkeypatch, result, tensor) is goes, extra


def test_tracked_objects_weigh_too(monkeypatch, root):
    """Track Masks with the bundled segmenter."""
    from mask_guided_video.nodes.segmentation_models import LoadSAM

    if not (root / "toybox" / "segmenter").is_dir():
        pytest.skip("this checkout has no Toybox segmenter")
    segmenter = LoadSAM.execute("Toybox").args[0]
    with torch.inference_mode():
        film = torch.rand(2, HEIGHT, WIDTH, 3)
        tracks = result_of("MGV_TrackMasks", model=segmenter, image=film, mask=film_mask()[:1])
    assert frees_first(monkeypatch, tracks, torch.zeros(19, dtype=torch.uint8))
    assert not frees_first(monkeypatch, tracks, torch.zeros(2**20, dtype=torch.uint8))


def test_detectors_and_segmenters_go_as_models_of_core_do(monkeypatch):
    """Those of an earlier workflow go first, however large anything else is."""
    from mask_guided_video.nodes.support.host import wrap_helper

    model = wrap_helper(object(), torch.nn.Linear(2, 2), "tiny")
    assert frees_first(monkeypatch, model, torch.zeros(2**20, dtype=torch.uint8), old=True)
    assert not frees_first(monkeypatch, model, torch.zeros(2**20, dtype=torch.uint8))


def test_every_node_with_such_a_result_is_here():
    from mask_guided_video import NODE_CLASS_MAPPINGS

    heavy = {
        name
        for name, node in NODE_CLASS_MAPPINGS.items()
        if {output.io_type for output in node.define_schema().outputs} & {"MGV_TRACKS", "MGV_GUIDE", "MGV_PROMPTS"}
    }
    assert heavy == {"MGV_TrackMasks", *MADE}


def test_a_weighed_value_is_the_value():
    from mask_guided_video.nodes.support.cache_weight import weighed

    plain = Tracks.from_masks(film_mask(), ("ball",))
    tracks = weighed(plain)
    assert isinstance(tracks, Tracks) and tracks.masks is plain.masks and tracks.report() == plain.report()
    assert bool(tracks) and weighed(tracks) is tracks
    assert type(tracks.select([0])) is type(tracks.with_masks(film_mask()[None])) is Tracks
    guide = weighed(plain_guide(film_mask(), mode="focus"))
    assert guide == guide and guide != weighed(plain_guide(film_mask(), mode="focus")) and len({guide, guide}) == 1
    assert replace(guide, strength=0.5).strength == 0.5 and type(replace(guide, strength=0.5)) is Guide


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_weigh_the_same(again):
    from mask_guided_video.nodes.support.cache_weight import weighed

    prompt = weighed(ObjectPrompt(0, mask=torch.ones(3, 5)))
    (weight,) = tuple(prompt)
    copied = again(prompt)
    assert isinstance(copied, ObjectPrompt) and torch.equal(copied.mask, prompt.mask)
    assert weight.shape == tuple(copied)[0].shape == (60,) and weight.untyped_storage().nbytes() == 1


def test_masks_in_files_weigh_nothing(tmp_path):
    from mask_guided_video.nodes.support.cache_weight import bytes_in_memory

    stack = MaskStack(2, 8, 8, folder=tmp_path)
    stack.add_object()
    assert bytes_in_memory(stack) == 0 and bytes_in_memory([stack, torch.zeros(3), {"a": torch.zeros(2)}]) == 20
