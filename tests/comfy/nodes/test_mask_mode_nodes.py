"""Dynamic Mask Guidance and Object Words: what they return, what they hang into a model, what they say of bad input."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from mask_guided_video.attention_patches.frame_keys import FirstFrameKeysPatch
from mask_guided_video.attention_patches.guidance.modes.registry import MODES
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball moves left on sand"
OWN = "mode's own"


def square(frames: int = 4, left: int = 4) -> torch.Tensor:
    mask = torch.zeros(frames, 32, 32)
    mask[:, 8:24, left : left + 12] = 1.0
    return mask


def guide(**values):
    from mask_guided_video.nodes.mask_modes import DynamicMaskGuidance

    settings = {
        "phrases": "red ball",
        "background_phrase": "sand",
        "mode": "dmg",
        "strength": 1.0,
        "start_percent": -1.0,
        "end_percent": -1.0,
        "key_source": OWN,
        "blocks": "",
        "rows": OWN,
        "frame_strength": "",
        "time_pooling": "max",
        "constants": "",
    }
    if not {"mask", "tracks"} & set(values):
        settings["mask"] = square()
    return DynamicMaskGuidance.execute(**{**settings, **values}).args


def patch(native, told, prompt: str = PROMPT, clip: bool = True):
    from mask_guided_video.nodes.guidance import PatchAttention

    return PatchAttention.execute(native[0], told, prompt, native[1] if clip else None).args[0]


def hung(model) -> list:
    from mask_guided_video.backbones.override_chain import STACKS_KEY

    return [
        entry for stack in model.model_options["transformer_options"].get(STACKS_KEY, ()) for entry in stack.patches
    ]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_its_constants_unless_told(mode: str) -> None:
    told, report = guide(mode=mode)
    assert told.mode == MODES[mode]() and told.key_source is None
    assert all(f"{constant.name}={constant.default}" in report for constant in fields(MODES[mode]))
    assert "red ball: in 4 of 4 frames, 18.8 % of the picture" in report


def test_widgets_and_constants_replace_them() -> None:
    told, report = guide(
        start_percent=0.1, end_percent=0.8, blocks="all", rows="conditional", key_source="first_prev",
        constants="gamma_cross=20, beta=3\nend_percent=0.9", frame_strength="0: 1, 3: 0.25", strength=2.0,
        time_pooling="mean",
    )  # fmt: skip
    mode = told.mode
    assert (mode.start_percent, mode.end_percent, mode.blocks) == (0.1, 0.9, "all")
    assert (mode.rows, mode.cross_rows) == ("conditional", "conditional")
    assert (mode.gamma_cross, mode.beta, told.strength, told.time_pooling) == (20.0, 3.0, 2.0, "mean")
    assert told.frame_strength == (1.0, 0.75, 0.5, 0.25) and told.keys == "first_prev"
    assert "gamma_cross=20.0" in report and "keys of first_prev" in report
    assert guide(start_percent=0.0, end_percent=0.0)[0].mode.end_percent == 0.0


def test_tracks_with_labels_and_several_objects() -> None:
    tracks = Tracks.from_masks(torch.stack([square(left=2), square(left=18)]), ("red ball", "sand"))
    told, _ = guide(tracks=tracks, phrases="", background_phrase="")
    assert told.phrases == ("red ball", "sand") and told.masks.shape == (2, 4, 32, 32)


def test_patches_in_their_order(native) -> None:
    kinds = [type(entry) for entry in hung(patch(native, guide(blocks="all", key_source="first_self")[0]))]
    assert kinds == [FirstFrameKeysPatch, GuidePatch]
    spans = hung(patch(native, guide()[0]))[-1].text_spans
    assert (spans.positions, spans.background) == (((1, 2),), (6,)) and spans.ordinary == tuple(range(7))
    assert hung(native[0]) == []


def test_nothing_to_do_gives_a_plain_clone(native) -> None:
    empty = Tracks.empty(4, 32, 32)
    for told, report in (guide(strength=0.0), guide(mask=torch.zeros(4, 32, 32)), guide(tracks=empty, phrases="")):
        assert "the video runs unguided" in report and hung(patch(native, told)) == []
    assert "strength is 0" in guide(frame_strength="0")[1]
    assert hung(patch(native, guide(mode="motionbooth", mask=torch.zeros(4, 32, 32))[0])) == []


def test_modes_without_text_encoder(native) -> None:
    assert hung(patch(native, guide()[0], "", clip=False))[-1].text_spans is None
    with pytest.raises(ValueError, match="mode motionbooth needs the text encoder, but clip is not connected"):
        patch(native, guide(mode="motionbooth")[0], clip=False)
    with pytest.raises(ValueError, match="mode direct_a_video has no phrases"):
        patch(native, guide(mode="direct_a_video", phrases="", background_phrase="")[0])
    with pytest.raises(ValueError, match="'grass' does not occur in the prompt"):
        patch(native, guide(background_phrase="grass")[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask": None, "tracks": None}, "neither of tracks and mask"),
        ({"constants": "gama=3"}, "mode dmg has no constant 'gama'; it has start_percent"),
        ({"constants": "beta=much"}, "constant beta is 'much'"),
        ({"end_percent": 0.2, "start_percent": 0.3}, "start_percent 0.3 and end_percent 0.2"),
        ({"frame_strength": "soon: 1"}, "is not a number at a frame"),
        ({"frame_strength": "0: 11"}, "frame_strength is 11"),
        ({"phrases": "red ball, blue ball"}, "a mask is one region but there are 2 phrases"),
        ({"phrases": ""}, "the background phrase 'sand' is given without phrases"),
        ({"mask": torch.full((4, 8, 8), float("nan"))}, "the mask holds NaN"),
    ],
)
def test_bad_input_is_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guide(**values)


def test_blocks_that_are_none(native) -> None:
    with pytest.raises(ValueError, match="'middle', which fits no block of this model .down.0.0, "):
        patch(native, guide(blocks="middle")[0])


def test_published_blocks_are_all_of_a_transformer() -> None:
    from native_models import tiny

    from mask_guided_video.nodes.guidance import PatchAttention

    wan = tiny("wan").patcher
    entry = hung(PatchAttention.execute(wan, guide(mode="peekaboo")[0], "")[0])[-1]
    assert entry.guide.mode.blocks == "all"
    with pytest.raises(ValueError, match="'up.1', which fits no block of this model .block.0, "):
        PatchAttention.execute(wan, guide(mode="peekaboo", blocks="up.1")[0], "")


def test_preview_shows_masks_by_the_rule_of_the_mode(native) -> None:
    from mask_guided_video.nodes.guidance import PreviewGuide

    thin = torch.zeros(4, 32, 32)
    thin[:, 5, 5] = 1.0
    latent = {"samples": torch.zeros(1, 4, 4, 8, 8)}
    wide, narrow = (
        PreviewGuide.execute(guide(mask=thin + square(), constants=f"mask_rule={rule}")[0], native[0], latent, 64).args[
            0
        ]
        for rule in ("maxpool", "area")
    )
    assert wide.shape == narrow.shape and wide.sum() > narrow.sum()


def test_films_follow_every_mode_and_stay_the_same_twice(native) -> None:
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    model, clip, _ = native

    def film(own) -> torch.Tensor:
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        latent = {"samples": torch.zeros(1, 4, 4, 8, 8)}
        noise = SeededVideoNoise(5, "plain", 16, 4, 0.2)
        return sample_film(own, positive, negative, noise, latent, SamplerSettings(2, cfg=3.0))["samples"]

    plain = film(model)
    for mode in MODES:
        guided = patch(native, guide(mode=mode, end_percent=1.0, blocks="all")[0])
        found = film(guided)
        assert bool(torch.isfinite(found).all()) and not torch.equal(found, plain), mode
        assert torch.equal(film(guided), found), mode
    assert torch.equal(film(model), plain)


def test_a_schedule_that_no_step_is_in_is_told(native, caplog) -> None:
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    clip = native[1]
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))

    def film(model) -> torch.Tensor:
        latent, noise = {"samples": torch.zeros(1, 4, 4, 8, 8)}, SeededVideoNoise(5, "plain", 16, 4, 0.2)
        return sample_film(model, positive, negative, noise, latent, SamplerSettings(2, cfg=3.0))["samples"]

    # Two steps begin at 0.5 of the schedule.
    early = film(patch(native, guide(mode="peekaboo")[0]))
    assert (
        "mode peekaboo acts from 0 to 0.04 of the schedule, where none of the 2 steps of this run lies" in caplog.text
    )
    assert torch.equal(early, film(native[0]))
    caplog.clear()
    film(patch(native, guide(mode="peekaboo", end_percent=1.0)[0]))
    assert "of the schedule" not in caplog.text


class TestObjectWords:
    def words(self, native, **values) -> str:
        from mask_guided_video.nodes.mask_modes import ObjectWords

        settings = {"prompt": PROMPT, "phrases": "red ball", "background_phrase": "sand"}
        return ObjectWords.execute(native[0], native[1], **{**settings, **values}).args[0]

    def test_report(self, native) -> None:
        assert self.words(native).splitlines()[:3] == [
            "red ball: tokens 1, 2",
            "background, sand: tokens 6",
            "other words: tokens 0, 3, 4, 5",
        ]
        assert self.words(native).splitlines()[3].startswith("7 of ")
        assert "background" not in self.words(native, background_phrase="")
        assert self.words(native, prompt="red ball", background_phrase="").splitlines()[1] == "other words: none"

    def test_bad_input_is_named(self, native) -> None:
        with pytest.raises(ValueError, match="'blue ball' does not occur in the prompt"):
            self.words(native, phrases="blue ball")
        with pytest.raises(ValueError, match="prompt is empty"):
            self.words(native, prompt=" ")


def test_help_names_every_mode_and_constant(root) -> None:
    page = (root / "web" / "docs" / "MGV_DynamicMaskGuidance.md").read_text(encoding="utf-8")
    assert "reconstruction" in page
    for name, mode in MODES.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{constant.name}={constant.default}`" in line for constant in fields(mode)), name
