"""Long films: text to film, frames in between, larger size; on tiny random models of the real kinds."""

import json

import pytest
import torch

from mask_guided_video.attention_patches.free_long import OCTAVES, FreeLongPatch
from mask_guided_video.recipes.films.files import enlarge, read_film, shown_enlargement
from mask_guided_video.recipes.long_video import recipe as module
from mask_guided_video.recipes.long_video.files import (
    REPORT,
    SHEET,
    files_of,
    long_video_summary,
    write_long_video,
)
from mask_guided_video.recipes.long_video.recipe import FILM, INTERPOLATED, UPSCALED, long_video
from mask_guided_video.recipes.long_video.schedule import schedule_prompts
from mask_guided_video.recipes.long_video.settings import (
    InterpolationSettings,
    LongVideoSettings,
    UpscalingSettings,
)
from mask_guided_video.recipes.measurements import frames_sha256
from mask_guided_video.video_models.sampling.noise import video_noise

PROMPT = "a red ball moves left on sand"
SCHEDULE = "0: a red ball moves left on sand\n6: a blue square moves right on grass"
SIZE = (1, 4, 12, 8, 8)


def settings(**values):
    return LongVideoSettings(**{"prompt": PROMPT, "frames": 12, "steps": 2, **values})


@pytest.fixture
def model(tiny_video_model):
    return tiny_video_model


def randomised(unet):
    """Zero-initialised layers would hide a part of the model."""
    for parameter in unet.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


SMALL = {
    "block_out_channels": (16, 16),
    "attention_levels": (True, True),
    "layers_per_block": 1,
    "num_heads": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "rotary_dim": 8,
}


@pytest.fixture(scope="module")
def interpolator(tiny_video_model):
    from mask_guided_video.video_models.interpolation import Interpolator
    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.files import make_unet

    torch.manual_seed(0)
    config = LaVieConfig(stage="interpolation", in_channels=8, native_frames=21, **SMALL)
    return Interpolator(randomised(make_unet(config)), tiny_video_model.text, tiny_video_model.coder)


@pytest.fixture(scope="module")
def upscaler(tiny_video_model):
    from mask_guided_video.video_models.lavie.config import UpscalerConfig
    from mask_guided_video.video_models.lavie.files import make_unet
    from mask_guided_video.video_models.upscaling import Upscaler

    torch.manual_seed(1)
    config = UpscalerConfig(only_cross_attention=(True, False), **SMALL)
    return Upscaler(randomised(make_unet(config)), tiny_video_model.text, tiny_video_model.coder)


def direct(model, patches=(), noise="freenoise", positive=None):
    """The same film, written down step by step."""
    with torch.inference_mode():
        latents = model.sample(
            video_noise(SIZE, 0, noise, window=4),
            positive or model.encode_prompt(PROMPT),
            model.encode_prompt(""),
            steps=2,
            patches=patches,
        )
        return model.decode(latents)


def test_film_is_what_its_parts_make(model, tmp_path):
    result = long_video(model, settings(), tmp_path)
    expected = direct(model, (FreeLongPatch(settings().free_long(model.geometry)),))
    (film,) = result.report["films"]
    assert film["sha256"] == frames_sha256(expected)
    assert (film["file"], film["frames"], film["height"], film["width"]) == (FILM, 12, 16, 16)
    assert not torch.equal(expected, direct(model))
    written = read_film(tmp_path / FILM)
    assert (written - enlarge(expected, shown_enlargement(16, 16))).abs().mean() < 0.05
    assert [path.name for path in tmp_path.iterdir()] == [FILM]


def test_without_technique_it_is_plain_sampling(model, tmp_path):
    result = long_video(model, settings(technique="none", noise="plain"), tmp_path)
    assert result.report["films"][0]["sha256"] == frames_sha256(direct(model, noise="plain"))
    assert result.report["noise"] == "plain"


@pytest.mark.parametrize("values", [{"strength": 0.0}, {"window": 12, "noise": "plain"}, {"frames": 4}])
def test_strength_0_and_short_films_are_bit_identical(model, tmp_path, values):
    prints = []
    for technique in ("freelong", "none"):
        result = long_video(model, settings(technique=technique, **values), tmp_path)
        prints.append(result.report["films"][0]["sha256"])
        assert any("FreeLong does not act" in note for note in result.report["notes"]) == (
            technique == "freelong" and "strength" not in values
        )
    assert prints[0] == prints[1]


def test_settings_become_free_long(model):
    plain = settings(window=None, end_percent=0.7, key_stride=2).free_long(model.geometry)
    assert (plain.window, plain.bands, plain.end_percent, plain.key_stride) == (4, (), 0.7, 2)
    assert settings(technique="freelong++", window=6).free_long(model.geometry).bands == OCTAVES
    assert settings(technique="none").free_long(model.geometry) is None


@pytest.mark.parametrize(
    ("factor", "native", "window", "expected"), [(4, 81, None, 21), (8, 121, None, 16), (1, 16, 5, 5), (4, 81, 1, 1)]
)
def test_window_is_counted_in_latent_frames(factor, native, window, expected):
    geometry = type("Geometry", (), {"temporal_factor": factor, "native_frames": native})
    assert settings(window=window).latent_window(geometry) == expected


def test_length_of_no_given_one_is_four_native_lengths():
    geometry = type(
        "Geometry", (), {"temporal_factor": 4, "native_frames": 81, "spatial_factor": 8, "height": 480, "width": 832}
    )
    assert settings(frames=None).film_size(geometry) == (321, 480, 832)
    with pytest.raises(ValueError, match="frames is 320; this model makes lengths of 4 \\* n \\+ 1: take 317"):
        settings(frames=320).film_size(geometry)


def test_prompts_over_time(model, tmp_path):
    chosen = settings(prompt="", schedule=SCHEDULE, schedule_overlap=4, technique="none")
    result = long_video(model, chosen, tmp_path)
    positive, patches = schedule_prompts(model, chosen.prompts, 4)
    assert result.report["films"][0]["sha256"] == frames_sha256(direct(model, patches, "plain", positive))
    assert result.report["noise"] == "plain"
    assert result.report["prompts"] == [
        {"frame": 0, "prompt": "a red ball moves left on sand"},
        {"frame": 6, "prompt": "a blue square moves right on grass"},
    ]
    first, second = result.lanes
    assert first.weights[0] == 1 and second.weights[-1] == 1
    assert torch.equal(first.weights + second.weights, torch.ones(12, dtype=torch.float64))


def test_a_prompt_beside_a_schedule_is_used_or_refused(model, upscaler, tmp_path):
    chosen = settings(schedule=SCHEDULE, **FEW)
    with pytest.raises(ValueError, match="there is a prompt .* beside a schedule, .*; leave one of the two out"):
        long_video(model, chosen, tmp_path)
    assert not list(tmp_path.iterdir())
    notes = long_video(model, chosen, tmp_path, upscaler=upscaler).report["notes"]
    assert any("the prompt beside it was that of the later stages" in note for note in notes)


def test_a_schedule_of_one_prompt_is_that_prompt(model, tmp_path):
    prints = [
        long_video(model, chosen, tmp_path).report["films"][0]["sha256"]
        for chosen in (settings(), settings(prompt="", schedule=f"0: {PROMPT}"))
    ]
    assert prints[0] == prints[1]


FEW = {"interpolation": InterpolationSettings(steps=2), "upscaling": UpscalingSettings(steps=2, window=6, overlap=2)}


def test_all_three_stages(model, interpolator, upscaler, tmp_path):
    """Frames go from stage to stage as they are, not through their files."""
    result = long_video(model, settings(frames=5, **FEW), tmp_path, interpolator, upscaler)
    base, filled, large = result.report["films"]
    assert [film["file"] for film in (base, filled, large)] == [FILM, INTERPOLATED, UPSCALED]
    assert [film["frames"] for film in (base, filled, large)] == [5, 17, 17]
    assert [film["frames_per_second"] for film in (base, filled, large)] == [8, 32, 32]
    assert (filled["height"], large["height"], large["width"]) == (16, 32, 32)
    with torch.inference_mode():
        patch = FreeLongPatch(settings().free_long(model.geometry))
        latents = model.sample(
            video_noise((1, 4, 5, 8, 8), 0, "freenoise", window=4),
            model.encode_prompt(PROMPT),
            model.encode_prompt(""),
            steps=2,
            patches=(patch,),
        )
        frames = model.decode(latents)
        expected = interpolator.interpolate(frames, PROMPT, steps=2)
        enlarged = upscaler.upscale(expected, PROMPT, steps=2, window=6, overlap=2)
    assert base["sha256"] == frames_sha256(frames)
    assert filled["sha256"] == frames_sha256(expected)
    assert large["sha256"] == frames_sha256(enlarged)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILM, INTERPOLATED, UPSCALED]
    assert read_film(tmp_path / UPSCALED).shape[0] == 17


def test_upscaling_alone(model, upscaler, tmp_path):
    result = long_video(model, settings(frames=3, **FEW), tmp_path, upscaler=upscaler)
    assert [film["file"] for film in result.report["films"]] == [FILM, UPSCALED]
    assert result.report["films"][1]["frames_per_second"] == 8


def test_progress_names_every_stage_and_reaches_its_end(model, interpolator, upscaler, tmp_path):
    ends = []

    def report(stage, done, total):
        if done == total:
            ends.append((stage, total))

    result = long_video(model, settings(frames=5, **FEW), tmp_path, interpolator, upscaler, report)
    assert ends == [
        ("sampling", 2),
        ("writing films", 5),
        ("interpolating", 2),
        ("writing films", 17),
        ("upscaling", 2),
        ("writing films", 17),
    ]
    timings = result.report["timings"]
    assert set(timings) == {"sampling", "writing films", "interpolating", "upscaling", "total"}
    assert sum(timings.values()) <= 2 * timings["total"]


@pytest.mark.parametrize(
    ("stage", "total", "kept"),
    [("sampling", 2, ()), ("writing films", 5, ()), ("interpolating", 2, (FILM,)), ("writing films", 17, (FILM,))],
)
def test_cancel_leaves_no_half_written_film(model, interpolator, tmp_path, stage, total, kept):
    def cancel(name, done, of):
        if (name, of) == (stage, total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        long_video(model, settings(frames=5, **FEW), tmp_path, interpolator, progress=cancel)
    assert tuple(path.name for path in tmp_path.iterdir()) == kept


def test_sheet_and_report(model, tmp_path):
    from PIL import Image

    result = long_video(model, settings(prompt="", schedule=SCHEDULE), tmp_path)
    write_long_video(tmp_path, result)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files_of(result)) == [FILM, REPORT, SHEET]
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["recipe"] == "long_video" and report["window"] == 4 and report["latents"] == list(SIZE)
    assert report["settings"]["schedule"] == SCHEDULE and report["timings"]["total"] > 0
    assert "freelong, window 4, plain noise" in long_video_summary(report)
    with Image.open(tmp_path / SHEET) as sheet:
        assert sheet.width > 700


def test_bad_input_is_named_before_any_work(model, interpolator, tmp_path):
    def never(*_):
        raise AssertionError("work was begun")

    for values, message in (
        ({"frames": 1}, "nothing in between to fill in"),
        ({"height": 33}, "height is 33"),
        ({"schedule": "0: a red ball\n12: a blue ball"}, "begins at frame 12 but the video has frames 0 to 11"),
    ):
        with pytest.raises(ValueError, match=message):
            long_video(model, settings(**values), tmp_path, interpolator, progress=never)
    assert list(tmp_path.iterdir()) == []


def test_broken_latents_leave_no_film(tiny_video_model_builder, tmp_path):
    model = tiny_video_model_builder()
    with torch.no_grad():
        next(model.unet.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        long_video(model, settings(frames=4), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_for_the_next_stage_is_said_before_any_work(model, upscaler, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError("no room")

    def never(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(module, "stored_film", no_room)
    with pytest.raises(OSError, match="no room"):
        long_video(model, settings(frames=4), tmp_path, upscaler=upscaler, progress=never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"schedule": "a red ball"}, "line 1 of the prompt schedule"),
        ({"schedule": "4: a red ball"}, "begins at frame 4"),
        ({"technique": "fast"}, "technique is 'fast'; choose one of freelong, freelong\\+\\+, none"),
        ({"noise": "pink"}, "noise is 'pink'; choose one of plain"),
        ({"sampler": "lcm"}, "sampler is 'lcm'"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": 5000}, "frames is 5000"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"window": 0}, "window is 0"),
        ({"noise_stride": 0}, "noise_stride is 0"),
        ({"schedule_overlap": -1}, "schedule_overlap is -1"),
        ({"frames_per_second": 0.0}, "frames_per_second is 0"),
        ({"strength": 2.0}, "strength is 2"),
        ({"temporal_cutoff": 0.0}, "temporal_cutoff is 0"),
        ({"largest_level": "none"}, "largest_level is 'none'"),
        ({"blocks": ""}, "blocks is ''"),
    ],
)
def test_settings_are_checked_when_they_are_made(values, message):
    with pytest.raises(ValueError, match=message):
        settings(**values)


def test_settings_of_the_later_stages():
    for make, message in (
        (lambda: InterpolationSettings(steps=0), "interpolation steps is 0"),
        (lambda: UpscalingSettings(noise_level=351), "noise_level is 351"),
        (lambda: UpscalingSettings(window=4, overlap=4), "upscaling overlap is 4; give a value from 0 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert settings(prompt="", schedule=SCHEDULE).later_prompt == "a red ball moves left on sand"
    assert settings(schedule=SCHEDULE).later_prompt == PROMPT
