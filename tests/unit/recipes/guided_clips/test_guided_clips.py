"""Guided clips, round after round: on a tiny random model of the real kind."""

import json

import pytest
import torch

from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.perception.pictures.histogram_match import histogram_match
from mask_guided_video.recipes.films.files import enlarge, read_film, shown_enlargement, to_bytes
from mask_guided_video.recipes.guided_clips.files import FILES, round_lanes, write_guided_clips
from mask_guided_video.recipes.guided_clips.recipe import FILM, ROUNDS, film_length, guided_clips
from mask_guided_video.recipes.guided_clips.report import guided_clips_summary
from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings
from mask_guided_video.recipes.measurements import frames_sha256
from mask_guided_video.video_models.sampling.first_frame import FirstFrame
from mask_guided_video.video_models.sampling.noise import share_first_frame

PROMPT = "a red ball moves left on sand"
N = 4


# Of two steps even the first lies in the middle of the schedule.
ALWAYS = {"end_percent": 1.0, "blocks": "all"}


def settings(**values):
    given = {"prompt": PROMPT, "phrases": ("red ball",), "background_phrase": "sand", "steps": 2, "frames": N}
    given |= {"constants": ALWAYS, "next_frame": "latent"}
    return GuidedClipsSettings(**{**given, "colour_reference": "none", **values})


def moving_masks(frames, side=16, size=6):
    """A square that moves a pixel each frame, there and back: [1, frames, side, side]."""
    masks = torch.zeros(1, frames, side, side)
    for frame in range(frames):
        left = frame % (2 * (side - size))
        left = min(left, 2 * (side - size) - left)
        masks[0, frame, 5 : 5 + size, left : left + size] = 1
    return masks


@pytest.fixture
def model(tiny_video_model):
    return tiny_video_model


def picture(seed=3, height=16, width=16):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def clip(model, chosen, masks, number=0, first=None, noise=None):
    """One round's latents, written down step by step."""
    patches = guide_patches(chosen.guide(masks, ()), model.token_spans(PROMPT, ("red ball",), "sand"))
    with torch.inference_mode():
        return model.sample(
            model.noise(N, 16, 16, chosen.seed + number) if noise is None else noise,
            model.encode_prompt(PROMPT),
            model.encode_prompt(""),
            steps=2,
            seed=chosen.seed + number,
            patches=patches,
            first_frame=None if first is None else FirstFrame(first),
        )


def film_of(result):
    """All frames of the stored rounds, shown or not."""
    return [torch.cat(list(stored.parts())) for stored in result.rounds]


class TestRounds:
    def test_one_round_is_a_plain_guided_clip(self, model, tmp_path):
        masks = moving_masks(N)
        result = guided_clips(model, settings(), masks, tmp_path)
        expected = model.decode(clip(model, settings(), masks))
        assert result.report["film"]["sha256"] == frames_sha256(expected)
        written = read_film(tmp_path / FILM)
        assert (written - enlarge(expected, shown_enlargement(16, 16))).abs().mean() < 0.05
        # The masks do something.
        plain = guided_clips(model, settings(strength=0.0), masks, tmp_path, rounds=tmp_path / "plain")
        assert plain.report["film"]["sha256"] != result.report["film"]["sha256"]

    def test_rounds_begin_with_the_last_latents_of_the_one_before(self, model, tmp_path):
        masks = moving_masks(2 * N - 1)
        result = guided_clips(model, settings(rounds=2, seed=5), masks, tmp_path)
        first = clip(model, settings(seed=5), masks[:, :N])
        second = clip(model, settings(seed=5), masks[:, N - 1 :], 1, first[:, :, -1:])
        assert torch.equal(result.rounds[0].last(), first[:, :, -1:])
        assert torch.equal(result.rounds[1].last(), second[:, :, -1:])
        expected = torch.cat([model.decode(first), model.decode(second)[1:]])
        assert result.report["film"]["sha256"] == frames_sha256(to_bytes(expected).float() / 255)

    def test_a_first_picture_is_the_first_frame(self, model, tmp_path):
        masks = moving_masks(N)
        result = guided_clips(model, settings(), masks, tmp_path, picture())
        seen = to_bytes(picture()).float() / 255
        with torch.inference_mode():
            latents = model.encode(seen[None])
        expected = clip(model, settings(), masks, 0, latents)
        assert torch.equal(expected[:, :, :1], latents)
        assert result.report["film"]["sha256"] == frames_sha256(model.decode(expected))

    def test_the_next_round_may_begin_with_the_picture(self, model, tmp_path):
        masks = moving_masks(2 * N - 1)
        result = guided_clips(model, settings(rounds=2, next_frame="picture"), masks, tmp_path)
        shown = film_of(result)[0][-1:]
        with torch.inference_mode():
            second = clip(model, settings(), masks[:, N - 1 :], 1, model.encode(shown))
        assert torch.equal(result.rounds[1].last(), second[:, :, -1:])

    def test_one_guided_frame_can_come_first(self, model, tmp_path):
        masks = moving_masks(N)
        chosen = settings(first_round="frame")
        result = guided_clips(model, chosen, masks, tmp_path)
        first = clip(model, chosen, masks[:, :1], noise=model.noise(1, 16, 16, 0))
        assert torch.equal(result.rounds[0].last(), clip(model, chosen, masks, 0, first)[:, :, -1:])

    def test_shared_noise_is_that_of_lamp(self, model, tmp_path):
        masks = moving_masks(N)
        result = guided_clips(model, settings(shared_noise=0.2), masks, tmp_path)
        noise = share_first_frame(model.noise(N, 16, 16, 0), 0.2, keep_variance=False)
        assert torch.equal(result.rounds[0].last(), clip(model, settings(), masks, noise=noise)[:, :, -1:])

    @pytest.mark.parametrize(("overlap", "rounds", "frames"), [("drop", 3, 10), ("keep", 3, 12), ("keep", 1, 4)])
    def test_frame_counts(self, model, tmp_path, overlap, rounds, frames):
        chosen = settings(rounds=rounds, overlap=overlap)
        assert film_length(model, chosen) == (frames, 16, 16)
        store = torch.zeros(frames, 16, 16, 3)
        result = guided_clips(model, chosen, moving_masks(rounds * (N - 1) + 1), tmp_path, store=store)
        assert result.report["film"]["frames"] == len(read_film(tmp_path / FILM)) == frames
        film = film_of(result)
        shown = [film[0], *(part if overlap == "keep" else part[1:] for part in film[1:])]
        assert torch.equal(store, torch.cat(shown))

    def test_both_overlaps_share_their_rounds(self, model, tmp_path):
        masks = moving_masks(7)
        dropped = guided_clips(model, settings(rounds=2), masks, tmp_path)
        kept = guided_clips(model, settings(rounds=2, overlap="keep"), masks, tmp_path)
        assert sum("finished by an earlier run" in note for note in kept.report["notes"]) == 2
        assert [torch.equal(*pair) for pair in zip(film_of(dropped), film_of(kept), strict=True)] == [True, True]

    def test_colours_follow_their_reference(self, model, tmp_path):
        masks = moving_masks(3 * (N - 1) + 1)
        plain = film_of(guided_clips(model, settings(rounds=3), masks, tmp_path, rounds=tmp_path / "none"))
        for reference in ("global", "local"):
            chosen = settings(rounds=3, colour_reference=reference)
            found = film_of(guided_clips(model, chosen, masks, tmp_path, rounds=tmp_path / reference))
            for number in range(3):
                wanted = plain[0][0] if reference == "global" or not number else found[number - 1][-1]
                # Latents are handed on, so that all rounds are those without matching.
                expected = to_bytes(histogram_match(plain[number], wanted)).float() / 255
                assert (found[number] - expected).abs().max() <= 2 / 255
            assert not torch.equal(found[2], plain[2])


class Stopped(RuntimeError):
    """What a cancel raises."""


def stop_at(wanted):
    def progress(stage, done, total):
        if (stage, done) == wanted:
            raise Stopped

    return progress


class TestResuming:
    @pytest.fixture
    def masks(self):
        return moving_masks(3 * (N - 1) + 1)

    @pytest.fixture
    def whole(self, model, masks, tmp_path):
        """Fingerprint of the film that was never stopped."""
        result = guided_clips(model, settings(rounds=3), masks, tmp_path, rounds=tmp_path / "whole")
        return result.report["film"]["sha256"]

    # In the middle of a round, behind its last step, and while the film is written.
    @pytest.mark.parametrize(
        ("stopped", "kept"), [(("rounds", 1), 0), (("rounds", 3), 1), (("rounds", 4), 1), (("writing film", 4), 3)]
    )
    def test_a_stopped_run_makes_the_same_film(self, model, masks, tmp_path, whole, stopped, kept):
        with pytest.raises(Stopped):
            guided_clips(model, settings(rounds=3), masks, tmp_path, progress=stop_at(stopped))
        assert len(list((tmp_path / ROUNDS).glob("*"))) == kept
        again = guided_clips(model, settings(rounds=3), masks, tmp_path)
        assert again.report["film"]["sha256"] == whole
        assert len([note for note in again.report["notes"] if "finished by an earlier run" in note]) == kept

    def test_between_rounds_and_with_more_rounds(self, model, masks, tmp_path, whole):
        guided_clips(model, settings(rounds=1), masks[:, :N], tmp_path)
        # What a killed process leaves.
        (tmp_path / ROUNDS / ".round_0002.77.partial.safetensors").write_bytes(b"half")
        again = guided_clips(model, settings(rounds=3), masks, tmp_path)
        assert again.report["film"]["sha256"] == whole
        assert again.report["notes"] == ["round 1 was finished by an earlier run."]
        assert sorted(path.name for path in (tmp_path / ROUNDS).iterdir()) == [
            f"round_{number:04d}.safetensors" for number in (1, 2, 3)
        ]

    @pytest.mark.parametrize("damage", ["cut", "empty"])
    def test_a_damaged_round_is_made_again(self, model, masks, tmp_path, whole, damage):
        guided_clips(model, settings(rounds=3), masks, tmp_path)
        path = tmp_path / ROUNDS / "round_0002.safetensors"
        path.write_bytes(path.read_bytes()[: 700 if damage == "cut" else 0])
        again = guided_clips(model, settings(rounds=3), masks, tmp_path)
        assert again.report["film"]["sha256"] == whole
        assert [note[:7] for note in again.report["notes"]] == ["round 1", "round 3"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cfg": 5.0}, "round 1 in .* was made with cfg 4.0, and now cfg is 5.0"),
            ({"prompt": "a blue ball moves left on sand", "phrases": ("blue ball",)}, "prompt"),
            ({"mode": "peekaboo"}, 'mode "dmg", and now mode is "peekaboo"'),
            ({"colour_reference": "local"}, "colour_reference"),
            (
                {"seed": 1},
                "seed 0, and now seed is 1; set it back to go on, start afresh \\(--fresh on the command line\\), or",
            ),
            ({"frames": 5}, "frames 4, and now frames is 5"),
        ],
    )
    def test_other_settings_are_refused(self, model, masks, tmp_path, changes, message):
        guided_clips(model, settings(), masks[:, :N], tmp_path)
        with pytest.raises(ValueError, match=message):
            guided_clips(model, settings(**changes), moving_masks(changes.get("frames", N)), tmp_path)
        assert len(list((tmp_path / ROUNDS).iterdir())) == 1

    def test_other_masks_pictures_and_models_are_refused(self, model, masks, tmp_path):
        guided_clips(model, settings(rounds=2), masks[:, :7], tmp_path, model_name="toybox")
        other = masks[:, :7].clone()
        other[:, 5] = 0
        with pytest.raises(ValueError, match="round 2 in .* was made with masks"):
            guided_clips(model, settings(rounds=2), other, tmp_path, model_name="toybox")
        with pytest.raises(ValueError, match="was made with first image null"):
            guided_clips(model, settings(rounds=2), masks[:, :7], tmp_path, picture(), model_name="toybox")
        with pytest.raises(ValueError, match='model "toybox", and now model is "lavie"'):
            guided_clips(model, settings(rounds=2), masks[:, :7], tmp_path, model_name="lavie")
        fresh = guided_clips(model, settings(rounds=2), other, tmp_path, model_name="toybox", fresh=True)
        assert not fresh.report["notes"]

    def test_a_foreign_file_is_refused(self, model, masks, tmp_path):
        from safetensors.torch import save_file

        (tmp_path / ROUNDS).mkdir()
        save_file({"frames": torch.zeros(1)}, tmp_path / ROUNDS / "round_0001.safetensors")
        with pytest.raises(ValueError, match=r"round_0001.safetensors' is not a round of guided clips"):
            guided_clips(model, settings(), masks[:, :N], tmp_path)

    def test_a_full_disk_leaves_the_finished_rounds(self, model, masks, tmp_path, whole):
        resource = pytest.importorskip("resource")
        guided_clips(model, settings(), masks[:, :N], tmp_path)
        before = {path.name: path.read_bytes() for path in (tmp_path / ROUNDS).iterdir()}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Files end at a thousand bytes, in the middle of a round.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match=r"round 2 cannot be written .* the 1 round.* before it .* kept"):
                guided_clips(model, settings(rounds=3), masks, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {path.name: path.read_bytes() for path in (tmp_path / ROUNDS).iterdir()} == before
        assert guided_clips(model, settings(rounds=3), masks, tmp_path).report["film"]["sha256"] == whole

    def test_too_little_room_is_said_before_any_work(self, model, masks, tmp_path, monkeypatch):
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
        with pytest.raises(OSError, match="has room for 1.0 KiB and the rounds take 9.0 KiB"):
            guided_clips(model, settings(rounds=3), masks, tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestInput:
    def test_an_empty_round_is_not_guided_and_said(self, model, tmp_path):
        masks = moving_masks(2 * N - 1)
        masks[:, N - 1 :] = 0
        result = guided_clips(model, settings(rounds=2), masks, tmp_path)
        first = clip(model, settings(), masks[:, :N])
        plain = clip(model, settings(strength=0.0), masks[:, N - 1 :], 1, first[:, :, -1:])
        assert result.report["notes"] == ["the masks of round 2 are empty: nothing guides it."]
        assert torch.equal(result.rounds[1].last(), plain[:, :, -1:])
        assert result.report["rounds"][1]["objects"] is None

    def test_an_object_may_leave_the_picture(self, model, tmp_path):
        masks = moving_masks(N)
        masks[:, 2:] = 0
        result = guided_clips(model, settings(), masks, tmp_path)
        assert result.report["notes"] == []
        assert all(bool(part.isfinite().all()) for part in film_of(result))

    def test_masks_of_another_size_are_brought_to_the_films(self, model, tmp_path):
        large = moving_masks(N).repeat_interleave(3, 2).repeat_interleave(3, 3)
        found = guided_clips(model, settings(), large, tmp_path, rounds=tmp_path / "large")
        assert found.report["film"] == guided_clips(model, settings(), moving_masks(N), tmp_path).report["film"]

    def test_frame_strength_counts_over_the_whole_film(self, model, tmp_path):
        masks = moving_masks(2 * N - 1)
        strength = (1.0, 1.0, 0.5, 0.25, 0.0, 0.0, 0.0)
        chosen = settings(rounds=2, frame_strength=strength)
        found = guided_clips(model, chosen, masks, tmp_path, rounds=tmp_path / "a")
        assert found.masks.strength_of_round(1, strength) == (0.25, 0.0, 0.0, 0.0)
        even = guided_clips(model, settings(rounds=2), masks, tmp_path)
        assert not torch.equal(found.rounds[0].last(), even.rounds[0].last())
        with pytest.raises(ValueError, match="2 frame strengths for 7 masks"):
            guided_clips(model, settings(rounds=2, frame_strength=(1.0, 0.5)), masks, tmp_path / "b")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"prompt": " "}, "the prompt is empty"),
            ({"phrases": "red ball"}, "phrases is the string"),
            ({"rounds": 0}, "rounds is 0; give a value from 1"),
            ({"rounds": 2, "frames": 1}, "frames is 1; give a value from 2"),
            ({"mode": "magic"}, "magic"),
            ({"constants": {"gamma": 3.0}}, "gamma"),
            ({"overlap": "cut"}, "overlap is 'cut'; choose one of drop, keep"),
            ({"colour_reference": "x"}, "choose one of global, local, none"),
            ({"next_frame": "x"}, "choose one of picture, latent"),
            ({"mask_borders": "x"}, "choose one of check, repair"),
            ({"first_round": "x"}, "choose one of clip, frame"),
            ({"strength": -1.0}, "strength is -1"),
            ({"strength": float("nan")}, "strength is nan"),
            ({"shared_noise": 2.0}, "shared_noise is 2.0"),
            ({"key_source": "second"}, "second"),
        ],
    )
    def test_bad_settings_are_one_sentence(self, values, message):
        with pytest.raises(ValueError, match=message):
            settings(**values)

    @pytest.mark.parametrize(
        ("changes", "image", "message"),
        [
            ({"phrases": ("green ball",)}, None, "green ball"),
            ({"background_phrase": "moon"}, None, "moon"),
            ({"phrases": ("red ball", "sand")}, None, "2 phrases"),
            ({"height": 17}, None, "height is 17"),
            ({}, torch.zeros(16, 40, 3), "40 x 16 pixels but the film 16 x 16"),
            ({}, torch.full((16, 16, 3), torch.nan), "NaN"),
            ({}, torch.zeros(16, 16), "pixels of the first image have shape"),
            ({"rounds": 2000}, None, "rounds is 2000"),
            ({"rounds": 500, "frames": 20}, None, "make 9501 frames; make at most 4096"),
        ],
    )
    def test_bad_input_is_said_before_any_work(self, model, tmp_path, changes, image, message):
        with pytest.raises(ValueError, match=message):
            guided_clips(model, settings(**changes), moving_masks(N), tmp_path, image, progress=stop_at(("rounds", 1)))
        assert list(tmp_path.iterdir()) == []

    def test_constants_may_be_a_text(self):
        assert settings(constants="gamma_cross=12, blocks=mid").constants == {"gamma_cross": 12, "blocks": "mid"}
        with pytest.raises(ValueError, match="gamma_cross"):
            settings(constants="gamma_cross=much")


class TestReport:
    def test_files(self, model, tmp_path):
        masks = moving_masks(2 * N - 1)
        result = guided_clips(model, settings(rounds=2), masks, tmp_path)
        write_guided_clips(tmp_path, result)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*FILES, ROUNDS))
        report = json.loads((tmp_path / "report.json").read_text())
        assert [entry["round"] for entry in report["rounds"]] == [1, 2]
        assert report["rounds"][0]["objects_drift"] == 0.0 and report["rounds"][1]["background_drift"] > 0.0
        assert len(report["joins"]["at"]) == 1
        assert "change where a round begins" in guided_clips_summary(report)
        outlined, film = read_film(tmp_path / "film_with_masks.mp4"), read_film(tmp_path / FILM)
        assert outlined.shape == film.shape
        # The outline of the last mask is in the last picture, and nowhere far from it.
        changed = (outlined[-1] - film[-1]).abs().mean(-1) > 0.2
        mask = (
            torch.nn.functional.max_pool2d(enlarge(masks[0, -1:], len(changed) // 16), 17, stride=1, padding=8)[0] > 0.5
        )
        assert changed[mask].float().mean() > 0.05 and not bool(changed[~mask].any())

    def test_lanes_name_the_rounds(self):
        lanes = round_lanes(3, 10)
        assert [lane.prompt for lane in lanes] == ["round 1", "round 2", "round 3"]
        assert torch.equal(sum(lane.weights for lane in lanes), torch.ones(10))
        assert round_lanes(1, 10) == round_lanes(17, 200) == ()
