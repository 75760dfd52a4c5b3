"""Prompts over time as text, and a film of them from a tiny video model."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.recipes.long_video.schedule import (
    MAX_PROMPTS,
    ScheduledPrompt,
    join_prompts,
    parse_schedule,
    schedule_prompts,
)

RED, BLUE = "a red ball moves right on sand", "a blue ball moves left on sand"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"0: {RED}\n32: {BLUE}", ((0, RED), (32, BLUE))),
        (f"  0 :{RED}  \n\n\t7\uff1a{BLUE}\n", ((0, RED), (7, BLUE))),
        (f"0:{RED}\r\n8:{BLUE}", ((0, RED), (8, BLUE))),
        ("0: a (red:1.2) ball,\n   at 12: 30\n 4: b", ((0, "a (red:1.2) ball, at 12: 30"), (4, "b"))),
        ("0: 3: a", ((0, "3: a"),)),
        ("00: b\n007: c", ((0, "b"), (7, "c"))),
    ],
)
def test_schedules_are_read(text: str, expected: tuple[tuple[int, str], ...]) -> None:
    assert parse_schedule(text) == tuple(ScheduledPrompt(*entry) for entry in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 prompts"),
        (" \n\n", "has 0 prompts"),
        (RED, f"line 1 of the prompt schedule is '{RED}'"),
        (f"0: {RED}\nl6: {BLUE}", "line 2 of the prompt schedule is 'l6: "),
        (f"0: {RED}\n-3: {BLUE}", "line 2 of the prompt schedule is '-3: "),
        (f"0: {RED}\n3.5: {BLUE}", "line 2 of the prompt schedule is '3.5: "),
        (f" {RED}\n0: {BLUE}", "line 1 of the prompt schedule"),
        (f"0: {RED}\n16:", "line 2 of the prompt schedule has no prompt after '16'"),
        (f"4: {RED}\n16: {BLUE}", "first prompt begins at frame 4"),
        (f"0: {RED}\n16: {BLUE}\n12: {RED}", "frame 12 follows one of frame 16"),
        (f"0: {RED}\n0: {BLUE}", "frame 0 follows one of frame 0"),
        ("0: a\n9999999999: b", "line 2"),
        ("\n".join(f"{frame}: a" for frame in range(MAX_PROMPTS + 1)), f"has {MAX_PROMPTS + 1} prompts"),
    ],
)
def test_bad_schedules_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


def test_prompts_are_joined(tiny_video_model) -> None:
    joined, lengths = join_prompts(tiny_video_model, [RED, BLUE, RED])
    alone = [tiny_video_model.encode_prompt(text).embedding for text in (RED, BLUE)]
    assert lengths == (alone[0].shape[1],) * 3
    assert torch.equal(joined.embedding, torch.cat((*alone, alone[0]), dim=1))
    assert joined.prompt == f"{RED}\n{BLUE}\n{RED}"


def test_other_prompts_are_refused() -> None:
    class Model:
        def encode_prompt(self, prompt: str) -> str:
            return prompt

    with pytest.raises(ValueError, match="prompts of the kind str cannot be joined"):
        join_prompts(Model(), [RED])


def film(model, schedule: str, frames: int = 9, overlap: int = 0, patches: tuple = (), **options) -> torch.Tensor:
    positive, own = schedule_prompts(model, parse_schedule(schedule), overlap)
    negative = model.encode_prompt("")
    return model.sample(
        model.noise(frames, 16, 16, 0), positive, negative, steps=3, patches=(*patches, *own), **options
    )


def difference(film: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Greatest difference of each frame, in parts of the range of the second film."""
    return ((film - other).abs().amax(dim=(0, 1, 3, 4)) / (other.max() - other.min())).tolist()


def test_one_prompt_is_the_plain_film_to_the_bit(tiny_video_model) -> None:
    model = tiny_video_model
    plain = model.sample(model.noise(9, 16, 16, 0), model.encode_prompt(RED), model.encode_prompt(""), steps=3)
    assert torch.equal(film(model, f"0: {RED}", overlap=4), plain)
    assert max(difference(film(model, f"0: {RED}\n3: {RED}", overlap=3), plain)) < 1e-5


def test_each_frame_alone_is_as_with_its_own_prompt(tiny_video_model) -> None:
    """Called with one frame of the clip at a time, the whole U-Net does what it does with that frame's prompt alone."""
    model = tiny_video_model
    positive, patches = schedule_prompts(model, parse_schedule(f"0: {RED}\n4: {BLUE}"), 2)
    noise = model.noise(9, 16, 16, 0)
    timestep = torch.tensor([700.0])

    def predict(frame: int, text: torch.Tensor, patches: tuple) -> torch.Tensor:
        class Window:
            index_list = (frame,)

        options = {"cond_or_uncond": [0], "context_window": Window(), "clip_frames": 9}
        if patches:
            options[OVERRIDE_KEY] = PatchStack(patches).override
        with torch.inference_mode():
            return model.unet(noise[:, :, [frame]], timestep, text, transformer_options=options)

    red, blue = (model.encode_prompt(text).embedding for text in (RED, BLUE))
    for frame in range(9):
        found = predict(frame, positive.embedding, patches)
        own, other = (red, blue) if frame < 4 else (blue, red)
        faded = frame in (3, 4)
        assert (max(difference(found, predict(frame, own, ()))) < 1e-5) != faded
        assert max(difference(found, predict(frame, other, ()))) > 1e-3


def test_frames_follow_their_prompts_beside_free_long(tiny_video_model) -> None:
    model = tiny_video_model
    free_long = (FreeLongPatch(FreeLong(4)),)
    found = film(model, f"0: {RED}\n5: {BLUE}", patches=free_long)
    red, blue = (film(model, f"0: {text}", patches=free_long) for text in (RED, BLUE))
    to_red, to_blue = difference(found, red), difference(found, blue)
    assert all(mine < other for mine, other in zip(to_red[:5], to_blue[:5], strict=True))
    assert all(mine < other for mine, other in zip(to_blue[5:], to_red[5:], strict=True))


def test_a_prompt_after_the_end_of_the_film_is_refused(tiny_video_model) -> None:
    with pytest.raises(ValueError, match="begins at frame 9 but the film has 9 frames"):
        film(tiny_video_model, f"0: {RED}\n9: {BLUE}")
