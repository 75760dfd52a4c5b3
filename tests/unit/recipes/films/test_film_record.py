"""What is kept of a film that passes by, and the sheet made of it."""

import pytest
import torch

from mask_guided_video.recipes.films.files import to_bytes
from mask_guided_video.recipes.films.record import FilmRecord, reduced
from mask_guided_video.recipes.films.sheet import Lane, film_sheet
from mask_guided_video.recipes.measurements import frames_sha256


def film(frames=10, height=8, width=12):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))


def watched(frames, part=3, **options):
    record = FilmRecord(len(frames), **{"window": 4, **options})
    return record, torch.stack(list(record.watch(frames.split(part))))


def test_frames_pass_unchanged_and_the_fingerprint_is_that_of_the_film():
    frames = film()
    record, passed = watched(frames)
    assert torch.equal(passed, to_bytes(frames))
    assert record.measured()["sha256"] == frames_sha256(frames)
    assert (record.height, record.width) == (8, 12)


def test_measured_numbers():
    """Black, black, white, white: one jump of 1, and colours that end (1, 1, 1) away."""
    frames = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    record, _ = watched(frames, window=2)
    measured = record.measured()
    assert record.changes == [0.0, 1.0, 0.0]
    assert measured["change_mean"] == pytest.approx(1 / 3)
    assert (measured["change_largest"], measured["change_largest_at"]) == (1.0, 2)
    assert measured["colour_drift"] == pytest.approx(3**0.5)


def test_one_frame_has_no_change():
    record, _ = watched(film(1))
    measured = record.measured()
    assert measured["change_mean"] is None and measured["change_largest_at"] is None
    assert measured["colour_drift"] == 0.0


def test_kept_pictures_and_rows():
    frames = film(10)
    record, passed = watched(frames, shown=4)
    assert list(record.pictures) == [0, 3, 6, 9]
    assert torch.equal(record.pictures[3], passed[3])
    assert torch.equal(torch.stack(record.middle_rows), passed[:, 4])


def test_large_pictures_are_kept_small():
    assert reduced(torch.full((384, 96, 3), 7, dtype=torch.uint8), 192).shape == (192, 48, 3)
    assert reduced(torch.zeros(4, 4000, 3, dtype=torch.uint8), 192).shape == (1, 192, 3)
    checked = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)[..., None].expand(2, 2, 3)
    assert reduced(checked, 1).flatten().tolist() == [128] * 3


def test_progress_and_store():
    frames, store, seen = film(7), torch.zeros(7, 8, 12, 3), []
    record = FilmRecord(7, 4)
    assert len(list(record.watch(frames.split(3), lambda *values: seen.append(values), store))) == 7
    assert seen == [(3, 7), (6, 7), (7, 7)] and torch.equal(store, frames)


@pytest.mark.parametrize(
    ("expected", "message"), [(8, "ended after 10 of the 8|more than the 8"), (12, "after 10 of the 12")]
)
def test_another_number_of_frames_is_refused(expected, message):
    with pytest.raises(ValueError, match=message):
        list(FilmRecord(expected, 4).watch(film(10).split(3)))


def test_broken_frames_are_refused():
    frames = film()
    frames[5] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        watched(frames)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (5, 9, 31), (40, 64, 64), (20, 320, 512)])
def test_sheet_of_any_film(frames, height, width):
    record, _ = watched(film(frames, height, width), part=8, shown=16)
    later, _ = watched(film(2 * frames, height, width), part=8, shown=8)
    weights = torch.linspace(0, 1, frames)
    lanes = (Lane("a red ball moves right on sand", 1 - weights), Lane("a blue ball " * 20, weights))
    sheet = film_sheet([("film", record), ("interpolated", later)], "a red ball " * 30, lanes, ("time: 3 s",))
    assert sheet.mode == "RGB" and 700 < sheet.width < 1900 and sheet.height > 400
