"""Mask-Guided Extend: the recipe's film on ComfyUI's own parts, kept under a name, and what is said of bad input."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import PLAIN, make_mode
from mask_guided_video.recipes.films.files import read_film
from mask_guided_video.recipes.guided_clips.recipe import guided_clips
from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball moves left on sand"
ROUNDS, FRAMES, SIDE = 2, 4, 32


@pytest.fixture
def folders(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path


def guide(frames=ROUNDS * (FRAMES - 1) + 1, **values):
    masks = torch.zeros(1, frames, SIDE, SIDE)
    for frame in range(frames):
        masks[0, frame, 8:20, frame : frame + 12] = 1
    mode = make_mode("dmg", end_percent=1.0, blocks="all")
    given = {"masks": masks, "phrases": ("red ball",), "background_phrase": "sand", "mode": mode}
    return Guide(**{**given, **values})


VALUES = {
    **{"negative_prompt": "", "rounds": ROUNDS, "frames": FRAMES, "width": SIDE, "height": SIDE, "seed": 3},
    **{"steps": 2, "cfg": 4.0, "sampler_name": "ddim", "overlap": "drop", "colour_reference": "none"},
    **{"next_frame": "latent", "mask_borders": "check", "first_round": "clip", "match_statistics": False},
    "shared_noise": 0.0,
}


def extend(native, chosen=None, **values):
    from mask_guided_video.nodes.extension import MaskGuidedExtend

    answer = MaskGuidedExtend.execute(*native, chosen or guide(), PROMPT, **{**VALUES, **values})
    return answer.args


def test_it_makes_the_film_of_the_recipe_stand_alone(native, tiny_folder, folders):
    from mask_guided_video.video_models.toybox import load_toybox

    images, report = extend(native)
    assert images.shape == (7, SIDE, SIDE, 3) and images.dtype == torch.float32
    sizes = {
        "colour_reference": "none",
        "next_frame": "latent",
        "rounds": ROUNDS,
        "frames": FRAMES,
        "width": SIDE,
        "height": SIDE,
    }
    settings = GuidedClipsSettings.of_guide(guide(), PROMPT, seed=3, steps=2, **sizes)
    store = torch.zeros(7, SIDE, SIDE, 3)
    (folders / "alone").mkdir()
    guided_clips(load_toybox(folder=tiny_folder), settings, guide().masks, folders / "alone", store=store)
    assert (images - store).abs().max() <= 2 / 255
    assert "2 rounds, 7 frames, 32 x 32; mode dmg" in report
    # Without a name nothing stays but the film that is handed on.
    assert list((folders / "temp").iterdir()) == [] and not (folders / "output").exists()


def test_the_guide_acts_and_the_model_is_left_alone(native, folders):
    first, _ = extend(native)
    weaker, _ = extend(native, guide(strength=0.0))
    again, _ = extend(native)
    assert torch.equal(first, again) and not torch.equal(first, weaker)
    assert "optimized_attention_override" not in native[0].model_options["transformer_options"]


def test_a_named_film_goes_on_where_it_stopped(native, folders, monkeypatch):
    import comfy.model_management as management

    from mask_guided_video.nodes.support import host

    whole, _ = extend(native)
    original, folder = management.throw_exception_if_processing_interrupted, folders / "output" / "video" / "zebra"

    def cancel():
        # In the second round.
        if list(folder.glob("rounds/*.safetensors")):
            raise management.InterruptProcessingException
        original()

    monkeypatch.setattr(host.management, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(management.InterruptProcessingException):
        extend(native, name="video/zebra")
    assert [path.name for path in (folder / "rounds").iterdir()] == ["round_0001.safetensors"]
    monkeypatch.setattr(host.management, "throw_exception_if_processing_interrupted", original)
    images, report = extend(native, name="video/zebra")
    assert torch.equal(images, whole) and "round 1 was finished by an earlier run" in report
    assert len(read_film(folder / "film.mp4")) == 7
    assert {path.name for path in folder.iterdir()} == {
        *("film.mp4", "film_with_masks.mp4", "report.json", "rounds", "sheet.png")
    }
    with pytest.raises(ValueError, match=r"was made with cfg 4.0, and now cfg is 5.0"):
        extend(native, name="video/zebra", cfg=5.0)


def test_another_model_does_not_go_on(native, folders):
    from mask_guided_video.host.motion.model_identity import model_identity

    other = native[0].clone()
    key = next(key for key in other.model.state_dict() if key.endswith("to_q.weight"))
    other.add_patches({key: (torch.ones_like(other.model.state_dict()[key]),)}, 0.5)
    assert model_identity(other) != model_identity(native[0]) == model_identity(native[0].clone())
    extend(native, guide(FRAMES), name="a", rounds=1)
    with pytest.raises(ValueError, match="was made with model"):
        extend((other, *native[1:]), guide(FRAMES), name="a", rounds=1)


def test_a_first_picture_of_another_size(native, folders):
    picture = torch.rand(2, 48, 48, 4, generator=torch.Generator().manual_seed(0))
    images, _ = extend(native, first_image=picture)
    assert not torch.equal(images, extend(native)[0])
    assert len(extend(native, rounds=1, chosen=guide(FRAMES), overlap="keep")[0]) == FRAMES


@pytest.mark.parametrize("name", ["../../out", "/etc/zebra", "video/../../.."])
def test_names_outside_of_the_output_folder_are_refused(native, folders, name):
    with pytest.raises((ValueError, OSError, Exception), match="(?i)outside|give one|not allowed"):
        extend(native, name=name, rounds=1)
    assert not (folders.parent / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 3}, "there are 7 masks, not a whole number of rounds: 3 rounds of 4 frames take 10"),
        ({"width": 48}, "the masks are 32 x 32 pixels but the film 48 x 32"),
        ({"width": 34}, "width is 34, not a multiple of 4"),
        ({"name": ".."}, "give one, such as video/zebra"),
        ({"chosen": guide(phrases=("blue ball",))}, "blue ball"),
        ({"first_image": torch.zeros(1, 16, 64, 3)}, "the first image is 64 x 16 pixels"),
    ],
)
def test_bad_input_is_one_sentence(native, folders, values, message):
    with pytest.raises(ValueError, match=message):
        extend(native, **values)


@pytest.mark.parametrize("mode", PLAIN)
def test_guides_of_mask_to_attention_bias_are_taken(native, folders, mode):
    images, report = extend(native, guide(mode=make_mode(mode), background_phrase=""))
    assert torch.isfinite(images).all() and mode in report
    assert not torch.equal(images, extend(native, guide(strength=0.0))[0])


def test_an_empty_mask_is_no_guidance(native, folders):
    images, report = extend(native, guide(phrases=(), background_phrase="", masks=torch.zeros(0, 7, 8, 8)))
    assert "the masks of round 1 are empty" in report
    assert torch.equal(images, extend(native, guide(strength=0.0))[0])
