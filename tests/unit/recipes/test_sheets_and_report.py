"""Pictures and words about a run."""

import json

import numpy as np
import pytest
import torch

from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.recipes.films.sheets import contact_sheet, side_by_side, with_masks, write_picture
from mask_guided_video.recipes.mask_refine.files import FILES, write_mask_refine
from mask_guided_video.recipes.mask_refine.recipe import MaskRefineResult
from mask_guided_video.recipes.mask_refine.report import build_report
from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings
from mask_guided_video.recipes.report import rounded, summary, write_report

SETTINGS = MaskRefineSettings("a red ball moves right on sand", ("red ball",))


def moving_ball(frames=4, size=32, shift=0):
    mask = torch.zeros(1, frames, size, size)
    for frame in range(frames):
        mask[0, frame, 8:20, 4 + 3 * frame + shift : 16 + 3 * frame + shift] = 1
    film = mask[0, ..., None] * torch.tensor([0.9, 0.1, 0.1]) + (1 - mask[0, ..., None]) * torch.tensor([0.8, 0.7, 0.5])
    return film, Tracks.from_masks(mask, ("red ball",))


def result(frames=4, found=True):
    first, tracks = moving_ball(frames)
    second, second_tracks = moving_ball(frames, shift=1)
    if not found:
        tracks = Tracks.empty(*first.shape[:3])
    guide = SETTINGS.guide(tracks.object_masks(), tracks.labels) if found else None
    report = build_report(SETTINGS, first, second, tracks, guide, tracks, second_tracks, given=False)
    report["timings"] = {"total": 1.25}
    return MaskRefineResult(first, second, tracks, [[] for _ in range(frames)], report)


def test_report_measures_both_films_under_the_guide():
    report = result().report
    assert report["films"]["first"]["object_iou"] == 1.0
    assert report["films"]["second"]["object_iou"] == pytest.approx(11 / 13)
    assert report["films"]["first"]["colour_purity"] == 1.0
    assert report["films"]["second"]["colour_purity"] == pytest.approx(11 / 12)
    assert report["films"]["second"]["edge_sharpness"] <= report["films"]["first"]["edge_sharpness"]
    assert report["change_outside"] == 0.0 and report["change_anywhere"] > 0
    assert report["settings"]["strength"] == 1.0
    assert report["masks"]["objects"][0]["phrase"] == "red ball"
    assert report["masks"]["objects"][0]["frames_missed"] == []


def test_filled_masks_do_not_count_as_seen():
    film, tracks = moving_ball()
    misses = torch.tensor([[False, True, False, False]])
    filled = Tracks(tracks.masks, tracks.ids, tracks.labels, tracks.scores, misses)
    guide = SETTINGS.guide(filled.object_masks(), filled.labels)
    report = build_report(SETTINGS, film, film, filled, guide, filled, tracks, given=False)
    assert report["films"]["first"]["object_iou"] == pytest.approx(3 / 4)
    assert report["films"]["second"]["object_iou"] == 1.0
    assert report["masks"]["objects"][0]["iou_first"] == pytest.approx(3 / 4)
    assert report["masks"]["objects"][0]["frames_missed"] == [1]


def test_report_without_an_object():
    report = result(found=False).report
    assert report["guided"] is False
    assert report["films"]["first"]["object_iou"] is None and report["films"]["first"]["colour_purity"] is None
    assert report["change_outside"] == report["change_anywhere"]
    assert "time: 1.2 s" in summary(report)


def test_summary_says_what_changed():
    words = summary(result().report)
    assert "object under the mask (IoU): 1.000 -> 0.846" in words
    assert "mean change outside the mask: 0.000" in words


def test_rounding_keeps_the_structure():
    value = {"a": [1.23456, (2, 0.00001)], "b": None, "c": "1.23456", "d": True}
    assert rounded(value) == {"a": [1.2346, [2, 0.0]], "b": None, "c": "1.23456", "d": True}


def test_report_refuses_what_json_has_no_word_for(tmp_path):
    with pytest.raises(ValueError):
        write_report(tmp_path / "report.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_side_by_side_shows_both_films_with_masks():
    run = result()
    film = side_by_side(run.first, run.second, run.tracks)
    assert film.shape == (4, 256 + 24, 2 * 256 + 6, 3)
    assert 0 <= film.min() and film.max() <= 1
    panel = film[:, 24:, :256]
    assert torch.equal(panel, with_masks(run.first, run.tracks, 8))
    plain = run.first.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert not torch.allclose(panel, plain, atol=1 / 255)
    assert torch.allclose(panel[:, -30:, -30:], plain[:, -30:, -30:], atol=1 / 255)


def test_side_by_side_without_objects_draws_none():
    run = result(found=False)
    film = side_by_side(run.first, run.second, run.tracks)
    plain = run.first.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.allclose(film[:, 24:, :256], plain, atol=1 / 255)


@pytest.mark.parametrize("frames", [1, 4, 20])
def test_contact_sheet_holds_frames_over_time(tmp_path, frames):
    run = result(frames=frames) if frames < 8 else None
    first, tracks = (run.first, run.tracks) if run else (torch.rand(frames, 16, 16, 3), Tracks.empty(frames, 16, 16))
    sheet = contact_sheet(first, first, tracks, "a prompt that is much longer than the sheet " * 4, ["one", "two"])
    columns = min(frames, 8)
    assert sheet.width == 120 + columns * (192 + 6) - 6 + 16
    centre = torch.from_numpy(np.asarray(sheet)[58 + 96, 120 + 96].copy()) / 255
    assert torch.allclose(centre, first[0, first.shape[1] // 2, first.shape[2] // 2], atol=1 / 255)
    write_picture(tmp_path / "sheet.png", sheet)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_all_files_are_written(tmp_path):
    write_mask_refine(tmp_path, result())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    report = json.loads((tmp_path / "report.json").read_text(encoding="ascii"))
    assert report["recipe"] == "mask_refine"
