"""Values that the schema lets through and no node can use: one sentence each, before the work where it can be."""

from __future__ import annotations

import os

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

WORKS = ["video/long", "a%width%x%height%", "b" * 200, "deep/" * 20 + "a", "%year%" * 60]
FAILS = ["a" * 300, "a\0b", "x/" + "b" * 300 + "/c", "\ud800"]


def inputs_of_names():
    from mask_guided_video.nodes.extension import MaskGuidedExtend
    from mask_guided_video.nodes.film_files import SaveLongVideo
    from mask_guided_video.nodes.motion import TrainMotion

    return [(SaveLongVideo, "filename_prefix"), (TrainMotion, "filename_prefix"), (MaskGuidedExtend, "name")]


@pytest.mark.parametrize("prefix", FAILS)
def test_names_that_no_file_can_have_are_refused_before_anything_runs(prefix):
    for node, name in inputs_of_names():
        answer = node.validate_inputs(**{name: prefix})
        assert isinstance(answer, str) and answer.startswith(f"{name} is '") and len(answer) < 200, node


@pytest.mark.parametrize("prefix", [*WORKS, None, ""])
def test_others_and_what_comes_over_a_wire_go_on(prefix):
    for node, name in inputs_of_names():
        assert node.validate_inputs(**{name: prefix}) is True, node


def test_a_path_of_a_name_is_the_hosts(tmp_path):
    from mask_guided_video.nodes.support.file_names import FILM, save_path

    for prefix in WORKS[:3]:
        folder, name, number, subfolder = save_path(prefix, str(tmp_path), FILM, (8, 4))
        assert folder == tmp_path / subfolder and number == 1
        (folder / f"{name}_00001_.mp4").write_text("")
    assert (tmp_path / "a8x4_00001_.mp4").is_file()
    # Room to the last byte.
    *_, name, number, _ = save_path("c" * 244, str(tmp_path), FILM)
    (tmp_path / f"{name}_{number:05}_.mp4").write_text("")
    for prefix in (*FAILS, "c" * 245):
        with pytest.raises(ValueError, match="^filename_prefix is '"):
            save_path(prefix, str(tmp_path), FILM)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"its folder cannot be made \(.*\); give another name"):
        save_path("file/a", str(tmp_path), FILM)


def test_save_long_video_fails_before_it_decodes(native, tmp_path, monkeypatch):
    import folder_paths

    from mask_guided_video.host.sampling import film_decoding
    from mask_guided_video.nodes.film_files import SaveLongVideo

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(film_decoding, "decode_parts", lambda *_: pytest.fail("it decodes"))
    samples = {"samples": torch.zeros(1, 4, 2, 4, 4)}
    with pytest.raises(ValueError, match="shorten it to 255"):
        SaveLongVideo.execute(samples, native[2], "a" * 300, 8.0, 4, 0, 14)
    if hasattr(os, "geteuid") and os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OSError, match="cannot be written to"):
            SaveLongVideo.execute(samples, native[2], "a", 8.0, 4, 0, 14)


class TestPictures:
    @pytest.mark.parametrize("shape", [(2, 0, 4, 3), (2, 4, 0, 3), (2, 4, 4, 2), (4, 4, 3)])
    def test_no_pixels(self, shape):
        from mask_guided_video.nodes.support.inputs import frames_of

        with pytest.raises(ValueError, match="image has shape"):
            frames_of(torch.zeros(shape))

    def test_other_types_become_floats_or_are_refused(self):
        from mask_guided_video.nodes.support.inputs import frames_of

        film = torch.rand(2, 4, 4, 3)
        assert frames_of(film).data_ptr() == film.data_ptr()
        assert torch.equal(frames_of((film * 255).to(torch.uint8)) * 255, (film * 255).floor())
        assert torch.equal(frames_of(film > 0.5), (film > 0.5).float())
        with pytest.raises(ValueError, match="image holds torch.int64; connect an IMAGE of floats"):
            frames_of((film * 255).long())

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
    def test_histogram_match_gives_an_image(self, dtype):
        from mask_guided_video.nodes.first_frame import HistogramMatch

        film = torch.rand(2, 4, 4, 4).mul(1 if dtype == torch.bool else 255).to(dtype)
        (matched,) = HistogramMatch.execute(film).args
        assert matched.dtype == torch.float32 and 0 <= matched.min() and matched.max() <= 1
        floats = film.float() / (1 if dtype == torch.bool else 255)
        assert torch.equal(matched, HistogramMatch.execute(floats).args[0])

    def test_a_first_picture_smaller_than_a_cell(self, native):
        from mask_guided_video.nodes.first_frame import FirstFrameLock

        with pytest.raises(ValueError, match="is 40 x 3 pixels; this VAE wants at least 4 x 4"):
            FirstFrameLock.execute(native[0], image=torch.rand(1, 3, 40, 3), vae=native[2])


def test_segs_that_say_nothing_of_the_picture():
    from mask_guided_video.nodes.box_converters import FromSEGS

    with pytest.raises(ValueError, match="SEGS of 0 x 0 pixels say nothing of the picture's size; connect the video"):
        FromSEGS.execute(((0, 0), []), 0)
    boxes, mask = FromSEGS.execute(((0, 0), []), 0, torch.rand(2, 4, 6, 3)).args
    assert boxes == [[], []] and mask.shape == (2, 4, 6) and not mask.any()


def test_latents_that_no_memory_holds_name_their_numbers():
    from mask_guided_video.nodes.video import VideoNoise

    message = r"empty latents take .* PiB, .*; lower batch_size \(10000000\), frames \(1024\), width \(8192\) or height"
    with pytest.raises(MemoryError, match=message):
        VideoNoise.execute(0, 1024, 8192, 8192, "plain", 16, 4, 0.2, 10_000_000)


def test_a_mask_batch_of_nothing():
    from mask_guided_video.nodes.prompts import mask_in_frame

    with pytest.raises(ValueError, match=r"mask has shape \(0, 4, 4\)"):
        mask_in_frame(torch.zeros(0, 4, 4), 0)


def test_a_tuned_model_outlives_a_full_disk(native, tmp_path, monkeypatch, caplog, small_files):
    import folder_paths

    from mask_guided_video.nodes import motion

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    from mask_guided_video.video_models.motion.motion_files import MotionFile, MotionInfo

    made = MotionFile("a", MotionInfo("lora", "tiny", "", (), 8), {"a": torch.zeros(1000)})
    with small_files(1000):
        report = motion._written(made, tmp_path / "a.safetensors")
    assert report.startswith("NOT WRITTEN: 'a.safetensors' cannot be written") and "NOT WRITTEN" in caplog.text
    assert motion._written(made, tmp_path / "a.safetensors") == "written to loras/a.safetensors"
