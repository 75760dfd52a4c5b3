"""Masks in little memory, and the tracks that are made of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.perception import mask_stack
from mask_guided_video.perception.mask_stack import MaskStack
from mask_guided_video.perception.tracks import Tracks, frame_ranges


def random_masks(objects=2, frames=3, height=5, width=13, hard=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 256, (objects, frames, height, width), generator=generator, dtype=torch.uint8)
    return (masks > 127).to(torch.uint8) * 255 if hard else masks


@pytest.mark.parametrize("width", [1, 7, 8, 9, 13, 64])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_written_is_read(tmp_path, width, hard, on_disk):
    masks = random_masks(width=width, hard=hard)
    stack = MaskStack(3, 5, width, "bit" if hard else "byte", tmp_path if on_disk else None)
    for film in masks:
        number = stack.add_object()
        for frame, mask in enumerate(film):
            stack.write(number, frame, mask)
    assert stack.shape == (2, 3, 5, width) and len(stack) == 2
    assert torch.equal(stack.tensor(), masks)
    assert stack.bytes_used == 2 * 3 * 5 * (-(-width // 8) if hard else width)


@pytest.mark.parametrize("depth", ["bit", "byte"])
def test_indices_read_as_those_of_a_tensor(depth):
    masks = random_masks()
    stack = MaskStack.from_tensor(masks, depth)
    assert torch.equal(stack[1], masks[1]) and torch.equal(stack[-1], masks[-1])
    assert torch.equal(stack[0, 2], masks[0, 2]) and torch.equal(stack[np.int64(0), -1], masks[0, -1])
    assert torch.equal(stack[:, 1], masks[:, 1]) and torch.equal(stack[:, 1:], masks[:, 1:])
    assert torch.equal(stack[[1, 0], 2], masks[[1, 0], 2]) and torch.equal(stack[1:, [2, 0]], masks[1:, [2, 0]])
    assert torch.equal(stack[0:0, 1:], masks[0:0, 1:])
    assert [film.shape for film in stack] == [(3, 5, 13)] * 2
    for wrong in ((2, 0), (0, 3)):
        with pytest.raises(IndexError):
            stack[wrong]


def test_what_is_read_is_a_copy():
    stack = MaskStack.from_tensor(random_masks())
    before = stack.tensor()
    for part in (stack[0], stack[0, 1], stack[:, 1], stack.union()):
        part.fill_(7)
    assert torch.equal(stack.tensor(), before)


def test_masks_of_any_kind_are_taken_and_cut_or_kept():
    hard, soft = MaskStack(4, 1, 3), MaskStack(4, 1, 3, "byte")
    values = [
        torch.tensor([[0.0, 0.4, 0.6]]),
        torch.tensor([[False, True, True]]),
        torch.tensor([[0, 127, 128]], dtype=torch.uint8),
        torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.bfloat16),
    ]
    for stack in (hard, soft):
        stack.add_object()
        for frame, value in enumerate(values):
            stack.write(0, frame, value)
    assert hard[0][:, 0].tolist() == [[0, 0, 255], [0, 255, 255], [0, 0, 255], [0, 255, 255]]
    assert soft[0][:, 0].tolist() == [[0, 102, 153], [0, 255, 255], [0, 127, 128], [0, 128, 255]]
    with pytest.raises(ValueError, match=r"shape \[3, 1\]; give \[1, 3\]"):
        hard.write(0, 0, torch.zeros(3, 1))


def test_the_depth_is_chosen_by_what_the_masks_hold():
    assert MaskStack.from_tensor(random_masks()).depth == "bit"
    assert MaskStack.from_tensor(random_masks(hard=False)).depth == "byte"
    with pytest.raises(ValueError, match="uint8"):
        MaskStack.from_tensor(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 1"):
        MaskStack(0, 4, 4)


@pytest.mark.parametrize("depth", ["bit", "byte"])
def test_union_is_the_greatest_of_all_objects(monkeypatch, depth):
    masks = random_masks(objects=3, hard=depth == "bit")
    stack = MaskStack.from_tensor(masks, depth)
    assert torch.equal(stack.union(), masks.amax(0))
    assert torch.equal(stack.union(slice(1, 2)), masks[:, 1:2].amax(0))
    monkeypatch.setattr(mask_stack, "CHUNK_PIXELS", 5 * 13 * 3 * 2)
    parts = list(stack.chunks())
    assert parts == [slice(0, 2), slice(2, 3)]
    assert torch.equal(torch.cat([stack.union(part) for part in parts]), masks.amax(0))


def test_no_objects_still_have_frames():
    stack = MaskStack(3, 4, 5)
    assert stack.shape == (0, 3, 4, 5) and stack.bytes_used == 0
    assert stack.tensor().shape == (0, 3, 4, 5) and stack[:, 1].shape == (0, 4, 5)
    assert stack.union().shape == (3, 4, 5) and not stack.union().any()
    assert list(stack.chunks()) == [slice(0, 3)]
    with pytest.raises(IndexError):
        stack[0]


def test_emptiness_is_known_without_unpacking():
    masks = torch.zeros(1, 2, 3, 9, dtype=torch.uint8)
    masks[0, 1, 2, 8] = 255
    stack = MaskStack.from_tensor(masks)
    assert [stack.any(0, frame) for frame in range(2)] == [False, True]


def test_selected_objects_share_their_films():
    stack = MaskStack.from_tensor(random_masks(objects=3))
    chosen = stack.select([2, 0])
    assert torch.equal(chosen.tensor(), stack.tensor()[[2, 0]])
    stack.write(2, 0, torch.ones(5, 13))
    assert bool((chosen[0, 0] == 255).all())
    assert stack.select([]).shape == (0, 3, 5, 13)


def test_a_mask_replaces_the_one_before():
    stack = MaskStack(2, 6, 9)
    stack.add_object()
    first, second = torch.zeros(6, 9), torch.zeros(6, 9)
    first[1:3, 2:8], second[4, 0] = 1, 1
    for mask in (first, second, torch.zeros(6, 9), first):
        stack.write(0, 1, mask)
        assert torch.equal(stack[0, 1], (mask * 255).to(torch.uint8))
        assert not stack.any(0, 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_only_rows_that_hold_something_take_memory():
    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    mask = torch.zeros(720, 1280)
    mask[100:170, 200:300] = 1
    # The first round takes what working with masks of this size takes at all.
    for frames in (4, 400):
        before = resident()
        stack = MaskStack(frames, 720, 1280)
        stack.add_object()
        for frame in range(frames):
            stack.write(0, frame, mask.roll(5, dims=0))
            stack.write(0, frame, mask)
        taken = resident() - before
    assert stack.bytes_used == 400 * 720 * 160 and taken < stack.bytes_used / 4
    assert torch.equal(stack[0, 399], (mask * 255).to(torch.uint8))


def test_files_leave_nothing_behind(tmp_path):
    stack = MaskStack(2, 4, 9, folder=tmp_path)
    stack.add_object()
    stack.write(0, 1, torch.ones(4, 9))
    chosen = stack.select([0])
    if os.name == "posix":
        assert list(tmp_path.iterdir()) == []
    del stack
    # The mapping lives as long as someone reads it.
    assert bool((chosen[0, 1] == 255).all())
    del chosen
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_or_full_is_an_error_at_once(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        MaskStack(2, 4, 9, folder=tmp_path / "missing").add_object()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="these masks take"):
        MaskStack(2, 4, 9, folder=tmp_path).add_object()


def test_tracks_of_masks_are_packed_and_read_the_same():
    masks = random_masks().float() / 255
    tracks = Tracks.from_masks(masks, ("a", "b"))
    assert tracks.masks.depth == "bit" and torch.equal(tracks.object_masks(), masks)
    assert torch.equal(tracks.with_masks(masks * 0.2).object_masks(), masks * 0.2)
    assert Tracks.from_masks(masks[0].bool()).masks.shape == (1, 3, 5, 13)
    assert Tracks.from_masks(torch.zeros(0, 3, 5, 13)).scores.shape == (0, 3)
    with pytest.raises(ValueError, match="NaN"):
        tracks.with_masks(torch.full((2, 3, 5, 13), torch.nan))
    with pytest.raises(ValueError, match="give .2, 3, 5, 13."):
        tracks.with_masks(masks[:1])


def test_frames_are_named_in_ranges():
    assert frame_ranges([]) == ""
    assert frame_ranges([0, 3, 4, 5, 9]) == "0, 3-5, 9"
    assert frame_ranges(range(0, 100, 2), most=3) == "0, 2, 4 and 47 more"


def test_the_report_of_a_long_film_stays_short():
    misses = torch.arange(4000) % 3 == 0
    masks = MaskStack(4000, 1, 1)
    masks.add_object()
    tracks = Tracks(masks, (4,), ("bird",), torch.full((1, 4000), 0.5), misses[None])
    assert tracks.report().startswith("4 bird: seen in 2666 of 4000 frames, mean score 0.50, missed in 0, 3, 6")
    assert tracks.report().endswith("and 1322 more") and len(tracks.report()) < 160


def test_masks_that_no_memory_holds_name_their_numbers():
    message = r"masks take 61 PiB.*more memory than there is; lower frames \(256000000\), width \(16384\) or height"
    with pytest.raises(MemoryError, match=message):
        MaskStack(256_000_000, 16384, 16384, "byte").add_object()


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_where_tracks_are_made(score):
    tracks = Tracks.from_masks(torch.ones(2, 3, 4, 4))
    scores = tracks.scores.clone()
    scores[1, 2] = score
    with pytest.raises(ValueError, match=f"the score of object 2 in frame 2 is {score}; give numbers in 0..1"):
        Tracks(tracks.masks, tracks.ids, tracks.labels, scores, tracks.misses)


def test_pages_that_hold_nothing_take_no_memory(tmp_path):
    import mmap

    height = mmap.PAGESIZE // 64
    stack = MaskStack(5, height, 64, "byte")
    stack.add_object()
    assert stack.bytes_in_memory == 0
    mask = torch.zeros(height, 64)
    mask[3, 5] = 1.0
    for frame in (0, 4):
        stack.write(0, frame, mask)
    assert stack.bytes_in_memory == 2 * mmap.PAGESIZE
    # Less than a page is taken in full.
    small = MaskStack(2, 3, 5, "byte")
    small.add_object()
    small.write(0, 1, torch.ones(3, 5))
    assert small.bytes_in_memory == 30
    in_file = MaskStack(2, 3, 5, "byte", tmp_path)
    in_file.add_object()
    in_file.write(0, 1, torch.ones(3, 5))
    assert in_file.bytes_in_memory == 0
