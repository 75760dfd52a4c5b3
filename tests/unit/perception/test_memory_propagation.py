"""Following objects with models that remember: transformers' own answers, in bounded memory, in both directions."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny_memory_models import SIDE, tiny_edgetam, tiny_film, tiny_sam2, tiny_sam3_tracker

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt, Point
from mask_guided_video.perception.segmentation.memory_propagation import MAX_PROMPTED_FRAMES, MemoryModel
from mask_guided_video.perception.segmentation.sam2 import video_processor

BOX = Box(6, 10, 30, 24)
OTHER = Box(44, 4, 20, 30)


def wrap(model) -> MemoryModel:
    module = sys.modules[type(model).__module__]
    name = type(model).__name__.replace("Model", "InferenceSession")
    return MemoryModel(model, model, getattr(module, name), video_processor(None, SIDE))


def has_sam3() -> bool:
    import transformers

    return hasattr(transformers, "Sam3TrackerVideoModel")


FAMILIES = {
    "sam2.1": tiny_sam2,
    "sam2": lambda: tiny_sam2("2"),
    "edgetam": tiny_edgetam,
    "sam3": tiny_sam3_tracker,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> MemoryModel:
    if request.param == "edgetam":
        pytest.importorskip("timm")
    if request.param == "sam3" and not has_sam3():
        pytest.skip("this transformers has no SAM 3")
    return wrap(FAMILIES[request.param]())


@pytest.fixture(scope="module")
def sam2() -> MemoryModel:
    return wrap(tiny_sam2())


def follow(model: MemoryModel, film: torch.Tensor, prompts: dict[int, dict[int, ObjectPrompt]], reverse: bool = False):
    """Masks and scores by frame and identity from a simple loop."""
    propagator = model.follow(Film(film), reverse)
    order = range(len(film))
    found: dict[int, dict] = {}
    for frame in reversed(order) if reverse else order:
        found[frame] = propagator.step(frame)
        if frame in prompts:
            found[frame] |= propagator.prompt(frame, prompts[frame])
    return found, propagator


def same(first, second) -> bool:
    return torch.equal(first.mask, second.mask) and first.score == pytest.approx(second.score, abs=1e-6)


def box_prompt(frame: int, box: Box = BOX) -> ObjectPrompt:
    return ObjectPrompt(frame, box=box)


def library_logits(model: MemoryModel, film: torch.Tensor, frame: int, prompt: dict, reverse: bool = False):
    """What transformers itself finds with the whole film in its session: mask logits at frame size by frame."""
    height, width = film.shape[1:3]
    pictures = torch.stack([torch.from_numpy(Film(film).picture(t)).permute(2, 0, 1) for t in range(len(film))])
    pixels = model.processor(videos=[pictures], return_tensors="pt")["pixel_values_videos"][0]
    session = model.session_class(video=pixels, video_height=height, video_width=width, dtype=torch.float32)
    place = session.obj_id_to_idx(1)
    if "mask" in prompt:
        session.add_mask_inputs(place, frame, prompt["mask"])
    else:
        session.add_point_inputs(place, frame, prompt)
    session.obj_with_new_inputs = [1]
    model.tracker(session, frame_idx=frame)
    logits = {}
    for output in model.tracker.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse):
        low = output.pred_masks.float()
        logits[output.frame_idx] = torch.nn.functional.interpolate(low, (height, width), mode="bilinear")[0, 0]
    return logits


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_library_with_the_whole_film_in_memory(family, reverse):
    film = tiny_film(18)
    start = 17 if reverse else 0
    corners = torch.tensor([[6.0, 10.0], [36.0, 34.0]]) * torch.tensor([SIDE / 80, SIDE / 48])
    prompt = {"point_coords": corners[None, None], "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32)}
    expected = library_logits(family, film, start, prompt, reverse)
    propagator = family.follow(Film(film), reverse)
    assert set(expected) == set(range(18))
    for frame in reversed(range(18)) if reverse else range(18):
        found = propagator.step(frame) or propagator.prompt(frame, {1: box_prompt(frame)})
        outputs = propagator.sessions[1].output_dict_per_obj[0]
        place = propagator.frames.place(frame)
        low = {**outputs["cond_frame_outputs"], **outputs["non_cond_frame_outputs"]}[place]["pred_masks"]
        logits = torch.nn.functional.interpolate(low, film.shape[1:3], mode="bilinear")[0, 0]
        assert (logits - expected[frame]).abs().max() <= 1e-4
        if (logits > 0).any():
            # Rounding to bytes is all that may differ.
            assert (found[1].mask.float() / 255 - logits.sigmoid()).abs().max() <= 0.5 / 255 + 1e-4
        assert (found[1].score > 0) == bool((logits > 0).any())


def test_a_mask_prompt_equals_the_librarys(family):
    film = tiny_film(10, SIDE, SIDE)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[12:30, 8:24] = True
    expected = library_logits(family, film, 0, {"mask": mask.float()[None, None]})
    found, _ = follow(family, film, {0: {1: ObjectPrompt(0, mask=mask)}})
    assert torch.equal(found[0][1].mask > 127, mask) and found[0][1].score == 1.0
    for frame in range(1, 10):
        logits = expected[frame]
        if (logits > 0).any():
            assert (found[frame][1].mask.float() / 255 - logits.sigmoid()).abs().max() <= 0.5 / 255 + 1e-4


def test_what_is_remembered_does_not_grow_with_the_film(family):
    def remembered(frames: int) -> list:
        prompts = {frame: {1: box_prompt(frame)} for frame in range(0, frames, 3)}
        _, propagator = follow(family, tiny_film(frames, 16, 24), prompts)
        sizes = []
        for session in propagator.sessions.values():
            outputs = session.output_dict_per_obj[0]
            kept = [*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()]
            names = [name for output in kept for name in output]
            sizes.append(
                (
                    len(outputs["cond_frame_outputs"]),
                    len(outputs["non_cond_frame_outputs"]),
                    names.count("maskmem_features"),
                    names.count("high_res_masks"),
                    sum(value.nbytes for output in kept for value in output.values()),
                    len(session.frames_tracked_per_obj[0]),
                    len(session.point_inputs_per_obj[0]) + len(session.mask_inputs_per_obj[0]),
                    len(session.cache._vision_features),
                )
            )
        return sizes

    short, long = remembered(40), remembered(79)
    assert short == long and len(short) == 1
    prompted, by_itself, memories, large_masks, _, tracked, inputs, features = long[0]
    limit = family.tracker.config.max_cond_frame_num if hasattr(family.tracker.config, "max_cond_frame_num") else -1
    assert prompted == (limit if limit > 0 else MAX_PROMPTED_FRAMES)
    assert by_itself < family.tracker.config.max_object_pointers_in_encoder
    assert memories <= prompted + family.tracker.config.num_maskmem
    assert (large_masks, inputs, features) == (0, 0, 1) and tracked <= 1


def test_frames_are_prepared_once_for_all_objects_and_not_kept(sam2, monkeypatch):
    asked = []
    prepare = MemoryModel.prepare
    monkeypatch.setattr(
        MemoryModel, "prepare", lambda self, film, frame: asked.append(frame) or prepare(self, film, frame)
    )
    follow(sam2, tiny_film(6), {0: {1: box_prompt(0), 2: box_prompt(0, OTHER)}, 3: {3: box_prompt(3)}})
    assert asked == [0, 1, 2, 3, 4, 5]


def test_backwards_equals_forwards_on_the_mirrored_film(family):
    film = tiny_film(12)
    backwards, _ = follow(family, film, {11: {1: box_prompt(11)}, 6: {2: box_prompt(6, OTHER)}}, reverse=True)
    forwards, _ = follow(family, film.flip(0), {0: {1: box_prompt(0)}, 5: {2: box_prompt(5, OTHER)}})
    assert all(set(backwards[11 - frame]) == set(forwards[frame]) for frame in range(12))
    assert all(
        same(sighting, backwards[11 - frame][identity])
        for frame in range(12)
        for identity, sighting in forwards[frame].items()
    )


def test_objects_do_not_influence_each_other_and_can_come_later(family):
    film = tiny_film(10)
    together, _ = follow(family, film, {0: {7: box_prompt(0)}, 4: {3: box_prompt(4, OTHER)}})
    alone, _ = follow(family, film, {0: {7: box_prompt(0)}})
    late, _ = follow(family, film[4:], {0: {3: box_prompt(0, OTHER)}})
    assert [set(found) for found in together.values()] == [{7}] * 4 + [{3, 7}] * 6
    assert all(same(together[frame][7], alone[frame][7]) for frame in range(10))
    # The place in the film plays no part but for how far back pointers can lie, which a film's length limits.
    assert torch.equal(together[4][3].mask, late[0][3].mask)


def test_a_forgotten_object_is_gone_and_can_start_afresh(sam2):
    film = tiny_film(6)
    propagator = sam2.follow(Film(film))
    propagator.prompt(0, {1: box_prompt(0), 2: box_prompt(0, OTHER)})
    propagator.step(1)
    propagator.forget(1)
    propagator.forget(99)
    assert set(propagator.step(2)) == {2} and set(propagator.sessions) == {2}
    again = propagator.prompt(3, {1: box_prompt(3)})
    fresh = sam2.follow(Film(film)).prompt(3, {1: box_prompt(3)})
    assert same(again[1], fresh[1])


def test_a_box_on_a_followed_object_says_afresh_where_it_is(family):
    film = tiny_film(8)
    found, propagator = follow(family, film, {0: {1: box_prompt(0)}, 5: {1: box_prompt(5, OTHER)}})
    fresh = family.follow(Film(film)).prompt(5, {1: box_prompt(5, OTHER)})
    assert same(found[5][1], fresh[1])
    outputs = propagator.sessions[1].output_dict_per_obj[0]
    assert set(outputs["cond_frame_outputs"]) == {0, 5} and 5 not in outputs["non_cond_frame_outputs"]


def test_points_correct_what_was_found_in_the_frame(sam2):
    film = tiny_film(8)
    click = ObjectPrompt(3, points=(Point(20, 20), Point(60, 40, inside=False)))

    def corrected(prompt: ObjectPrompt):
        propagator = sam2.follow(Film(film))
        propagator.prompt(0, {1: box_prompt(0)})
        for frame in range(1, 4):
            before = propagator.step(frame)[1]
        return before, propagator.prompt(3, {1: prompt})[1], propagator

    before, after, propagator = corrected(click)
    assert before.score > 0, "nothing to correct"
    fresh = sam2.follow(Film(film)).prompt(3, {1: click})[1]
    assert not torch.equal(after.mask, before.mask) and not torch.equal(after.mask, fresh.mask)
    outputs = propagator.sessions[1].output_dict_per_obj[0]
    assert set(outputs["cond_frame_outputs"]) == {0, 3} and set(outputs["non_cond_frame_outputs"]) == {1, 2}
    # Another click in the same frame goes on from there.
    second = propagator.prompt(3, {1: ObjectPrompt(3, points=(Point(50, 10),))})[1]
    assert not torch.equal(second.mask, after.mask)
    assert set(outputs["cond_frame_outputs"]) == {0, 3}
    assert propagator.step(4)[1].mask.shape == (48, 80)


@pytest.mark.parametrize(
    "prompt",
    [
        ObjectPrompt(0, box=BOX),
        ObjectPrompt(0, points=(Point(15, 20),)),
        ObjectPrompt(0, points=(Point(15, 20), Point(70, 40, inside=False))),
        ObjectPrompt(0, box=BOX, points=(Point(15, 20),)),
        ObjectPrompt(0, mask=torch.ones(48, 80, dtype=torch.bool).tril(20)),
        ObjectPrompt(0, box=BOX, mask=torch.ones(48, 80, dtype=torch.bool).tril(20)),
        ObjectPrompt(0, points=(Point(15, 20),), mask=torch.ones(48, 80, dtype=torch.bool).triu()),
    ],
    ids=["box", "point", "points", "box+point", "mask", "box+mask", "point+mask"],
)
def test_every_kind_of_prompt(family, prompt):
    found, _ = follow(family, tiny_film(3), {0: {1: prompt}})
    for sightings in found.values():
        assert sightings[1].mask.shape == (48, 80) and sightings[1].mask.dtype == torch.uint8
        assert 0 <= sightings[1].score <= 1 and (sightings[1].score > 0) == bool((sightings[1].mask > 127).any())


def test_a_rough_mask_beside_a_box_has_a_say(sam2):
    film = Film(tiny_film(1))
    rough = torch.zeros(48, 80, dtype=torch.bool)
    rough[10:20, 6:20] = True
    answers = [
        sam2.follow(film).prompt(0, {1: prompt})[1].mask
        for prompt in (box_prompt(0), ObjectPrompt(0, box=BOX, mask=rough), ObjectPrompt(0, box=BOX, mask=~rough))
    ]
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[1], answers[2])


def test_a_tiny_mask_is_not_lost(sam2):
    film = torch.rand(2, 600, 900, 3)
    mask = torch.zeros(600, 900, dtype=torch.bool)
    mask[300, 400] = True
    found, propagator = follow(sam2, film, {0: {1: ObjectPrompt(0, mask=mask)}})
    assert found[0][1].mask.sum() == 255 and found[0][1].score == 1.0
    assert (
        float(propagator.sessions[1].output_dict_per_obj[0]["cond_frame_outputs"][0]["object_score_logits"].max()) > 0
    )


def test_an_object_out_of_sight_has_an_empty_mask():
    model = tiny_sam2()
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-1000.0)
    found, _ = follow(wrap(model), tiny_film(3), {0: {1: box_prompt(0)}})
    assert all(found[frame][1].score == 0 and not found[frame][1].mask.any() for frame in range(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("build", list(FAMILIES.values()), ids=list(FAMILIES))
def test_half_precision(build, dtype, request):
    if "sam3" in request.node.name and not has_sam3():
        pytest.skip("this transformers has no SAM 3")
    if "edgetam" in request.node.name:
        pytest.importorskip("timm")
    model = wrap(build().to(dtype))
    rough = torch.ones(48, 80, dtype=torch.bool).tril(20)
    prompts = {1: box_prompt(0), 2: ObjectPrompt(0, mask=rough), 3: ObjectPrompt(0, box=BOX, mask=rough)}
    found, propagator = follow(model, tiny_film(9), {0: prompts, 4: {1: ObjectPrompt(4, points=(Point(20, 20),))}})
    assert set(found[8]) == {1, 2, 3}
    assert any(sighting.score > 0 for sighting in found[8].values())
    for session in propagator.sessions.values():
        for outputs in session.output_dict_per_obj[0].values():
            assert all(torch.isfinite(value).all() for output in outputs.values() for value in output.values())


def test_films_of_any_kind(sam2):
    for film in (torch.rand(1, 33, 47, 3), torch.rand(2, 33, 47, 4), torch.randint(0, 256, (2, 5, 200, 3)).byte()):
        height, width = film.shape[1:3]
        found, _ = follow(sam2, film, {0: {1: ObjectPrompt(0, box=Box(1, 1, width - 2, height - 2))}})
        assert [sightings[1].mask.shape for sightings in found.values()] == [(height, width)] * len(film)
    assert sam2.follow(Film(torch.rand(2, 8, 8, 3))).step(1) == {}


def test_a_frame_that_is_not_finite_is_named(sam2):
    film = tiny_film(4)
    film[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="frame 2 holds NaN"):
        follow(sam2, film, {0: {1: box_prompt(0)}})
