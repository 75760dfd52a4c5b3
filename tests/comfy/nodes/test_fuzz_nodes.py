"""Random inputs through every node: it answers rightly, or in one sentence of this pack; never by chance.

A few calls of each node by default. ``FUZZ_CALLS=200 python -m pytest -m fuzz`` makes many, ``FUZZ_SEED=7`` others.
"""

from __future__ import annotations

import time
from collections import namedtuple

import pytest
import torch
from fuzzing import LONGEST_CALL, Call, Parts, call_count, faults_of, first_seed, is_sentence, node_ids

pytestmark = [pytest.mark.comfy, pytest.mark.fuzz, pytest.mark.usefixtures("as_in_a_node")]

USUAL_CALLS = 6
Segment = namedtuple(
    "Segment", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper", defaults=(None,)
)


@pytest.fixture(scope="module")
def parts(native, tiny_folder, toybox_folder):
    from lavie_stages import Stage, make_stage

    from mask_guided_video.host.models.loading import load_native_toybox
    from mask_guided_video.nodes.detection import LoadGroundingDINO
    from mask_guided_video.nodes.segmentation_models import LoadSAM

    stages = {"MGV_InterpolateVideo": "interpolation", "MGV_UpscaleVideo": "upscaling"}
    with torch.inference_mode():
        made = {node: make_stage(stage, tiny_folder) for node, stage in stages.items()}
        made["MGV_LoadMotion"] = Stage(*load_native_toybox(toybox_folder), None)
        helpers = [node.execute("Toybox", "fp32", False).args[0] for node in (LoadGroundingDINO, LoadSAM)]
    return Parts(*native, made, *helpers, Segment)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """ComfyUI's folders, with two clips and their masks."""
    import folder_paths

    from mask_guided_video.recipes.films.files import write_film

    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    (tmp_path / "input" / "clips").mkdir()
    for number in range(2):
        write_film(tmp_path / "input" / "clips" / f"{number}.mp4", torch.rand(8, 16, 16, 3))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.mark.parametrize("node_id", node_ids())
def test_a_node_answers_rightly_or_in_a_sentence(node_id, parts, folders):
    from mask_guided_video import NODE_CLASS_MAPPINGS

    faults, answers = [], 0
    for number in range(call_count(USUAL_CALLS)):
        call = Call(NODE_CLASS_MAPPINGS[node_id], parts, f"{first_seed()}/{node_id}/{number}")
        started = time.monotonic()
        try:
            output = call.node.execute(**call.inputs)
        # Whatever it is: that is the question.
        except Exception as error:
            if not is_sentence(error):
                faults.append(f"{call.described()}\n  -> {type(error).__name__}: {error}")
        else:
            answers += 1
            faults += [f"{call.described()}\n  -> {fault}" for fault in faults_of(call, output.args)]
        if time.monotonic() - started > LONGEST_CALL:
            faults.append(f"{call.described()}\n  -> took {time.monotonic() - started:.0f} s")
    left = [path for path in folders.rglob("*") if path.name.startswith((".partial", ".lock"))]
    assert not left, f"{node_id} left {left}"
    assert not faults, "\n\n".join(faults)
    # A fuzz that is always refused tests nothing but refusals.
    assert answers or call_count(USUAL_CALLS) < 30, f"{node_id} refused everything"
