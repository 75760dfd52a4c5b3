"""Context windows of films with sound: each is guided by its part of the masks, with its part of the sound and guides.

A window's call of the model is compared with a film of just these frames and this sound, with explicit biases.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from core_windows import film_frames, predictions_by_window, windowed
from dense_reference import CALLS, DenseGuide, DenseReference, latent_frames
from native_guides import first_predictions, guide_of, left_alone, masks_of, patched, relative, spans_of
from native_ltx_models import keyframes
from native_models import TinyModel, tiny
from torch import Tensor

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

EXACT, CLEAR = 1e-4, 1e-3
Window = tuple[int, ...]


def long_film(name: str, frames: int) -> tuple[TinyModel, Any]:
    """The tiny model and noise for a film of so many frames; a guide picture follows them where it has one."""
    model = tiny(name)
    guides = CALLS[name].after // 20
    noise = model.noise(frames=frames + guides)
    return replace(model, extras=with_mask(model, frames, guides, noise.unbind()[1].shape[2])), noise


def with_mask(model: TinyModel, frames: int, guides: int, sound: int) -> dict[str, Any]:
    """The conditions of a model, whose noise mask is that of so many frames and steps of sound."""
    extras = dict(model.extras)
    if "concat_mask" in extras:
        extras["concat_mask"] = partial(noise_mask, frames, guides, sound)
    return extras


def noise_mask(frames: int, guides: int, sound: int) -> Tensor:
    """As the host packs it: only the guides are given."""
    import comfy.utils

    film = torch.cat([torch.ones(1, 128, frames, 4, 5), torch.zeros(1, 128, guides, 4, 5)], dim=2)
    return comfy.utils.pack_latents([film, torch.ones(1, 8, sound, 16)])[0]


def part_of(name: str, noise: Any, window: Window, anchored: bool, frames: int) -> tuple[TinyModel, Any]:
    """A film of just the frames of a window; the guide stands at frame 0 and comes with it."""
    from comfy.nested_tensor import NestedTensor

    film, sound = noise.unbind()
    model = tiny(name)
    guided = bool(CALLS[name].after) and 0 in window
    kept = [*window, frames] if guided else list(window)
    each = sound.shape[2] / frames
    # The frame in front of a window brings no sound.
    steps = sorted({step for frame in window[anchored:] for step in steps_of(frame, each)})
    latents = [film.index_select(2, torch.tensor(kept)), sound.index_select(2, torch.tensor(steps))]
    extras = with_mask(model, len(window), int(guided), len(steps))
    if guided:
        # The host makes the guide's place anew, as that of a latent frame of eight pictures.
        extras["keyframe_idxs"] = keyframes()
        extras["keyframe_idxs"][:, 0, :, 1] = 8
    else:
        extras = {
            key: value for key, value in extras.items() if key not in ("keyframe_idxs", "guide_attention_entries")
        }
    return replace(model, extras=extras), NestedTensor(latents)


def steps_of(frame: int, each: float) -> range:
    """Steps of sound beside a latent frame."""
    return range(round(frame * each), round((frame + 1) * each))


def by_hand(name: str, noise: Any, window: Window, frames: int, **changes: Any) -> dict[str, Tensor]:
    """What a film of these frames alone predicts, with explicit biases of their masks."""
    anchored = window[0] != 0
    model, part = part_of(name, noise, window, anchored, frames)
    masks = latent_frames(masks_of(model, frames), CALLS[name].covered(frames))[:, list(window)]
    calls = replace(CALLS[name], frames=len(window))
    if "keyframe_idxs" not in model.extras:
        # No guide asks apart where there is none.
        calls = replace(calls, after=0, order=CALLS["ltxav"].order)
    guide = guide_of(name, "separate", masks=masks, **changes)
    reference = DenseReference(model, [DenseGuide(guide, calls, model.latents[-2:], spans_of(name))])
    reference.order = calls.each
    return first_predictions(model, reference.hang(model.patcher), noise=part)


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23", "ltxav_25", "ltxav_weak_guide", "ltxav_masked_guide"])
def test_windows_with_sound(name: str) -> None:
    frames = film_frames(name)
    model, noise = long_film(name, frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames), rows="conditional")
    guided = windowed(patched(model, guide, spans_of(name)), name, "standard_static")
    if not cuts_sound():
        with pytest.raises(ValueError, match="this ComfyUI's context windows do not cut latents with sound"):
            predictions_by_window(model, guided, noise)
        return
    found = predictions_by_window(model, guided, noise)
    plain = predictions_by_window(model, windowed(model.patcher, name, "standard_static"), noise)
    assert len(found) >= 3 and found.keys() == plain.keys()
    for window, predictions in found.items():
        expected = by_hand(name, noise, window, frames, rows="conditional")
        for prompt, value in predictions.items():
            assert relative(value, expected[prompt]) < EXACT
        assert relative(predictions["positive"], plain[window]["positive"]) > CLEAR
        assert left_alone(name, predictions["negative"], plain[window]["negative"])


def cuts_sound() -> bool:
    from comfy.model_base import LTXAV

    return hasattr(LTXAV, "map_context_window_to_modalities")
