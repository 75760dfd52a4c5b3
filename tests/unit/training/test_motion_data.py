"""Clips and masks of motion tuning: pairing, words, sizes, cache, augmentation, and every wrong folder."""

import numpy as np
import pytest
import torch

from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.training.motion.data import ClipWords, find_clips, fitted, load_clips
from mask_guided_video.training.motion.masks import augmented_masks
from mask_guided_video.training.motion.settings import MaskAugmentation, MotionSettings

SETTINGS = MotionSettings(prompt="a red ball moves left", phrases=("ball",))


def write_clips(folder, count=2, frames=5, size=16, masks=True):
    """Films of random pictures, and masks whose left half is the object."""
    (folder / "videos").mkdir()
    (folder / "masks").mkdir()
    for number in range(count):
        pictures = torch.rand(frames, size, size, 3, generator=torch.Generator().manual_seed(number))
        write_film(folder / "videos" / f"clip{number}.mp4", pictures)
        if masks:
            drawn = np.zeros((frames, size, size), dtype=bool)
            drawn[:, :, : size // 2] = True
            np.save(folder / "masks" / f"clip{number}.npy", drawn)
    return folder / "videos", folder / "masks"


def test_clips_are_paired_and_have_their_words(tmp_path):
    videos, masks = write_clips(tmp_path, 3)
    (videos / "clip1.txt").write_text("a blue square moves right on grass\nblue square\nBackground: grass\n")
    (videos / "notes.md").write_text("no film")
    found = find_clips(videos, masks, SETTINGS)
    assert [clip.name for clip in found] == ["clip0", "clip1", "clip2"]
    assert found[0].words == ClipWords("a red ball moves left", ("ball",), "")
    assert found[1].words == ClipWords("a blue square moves right on grass", ("blue square",), "grass")
    assert found[2].masks == masks / "clip2.npy"


@pytest.mark.parametrize(
    ("count", "change", "message"),
    [
        (1, lambda videos, masks: None, "holds 1 video .* too few to tell motion"),
        (0, lambda videos, masks: None, "holds 0 videos"),
        (2, lambda videos, masks: (masks / "clip1.npy").unlink(), "2 videos and 1 masks, .*: clip1; give"),
        (2, lambda videos, masks: np.save(masks / "more.npy", np.ones((2, 2))), "2 videos and 3 masks, .*: more; give"),
        (2, lambda videos, masks: (videos / "clip0.txt").write_bytes(b"\xff\xfe\xff"), "clip0.txt.* is not text"),
    ],
)
def test_wrong_folders(tmp_path, count, change, message):
    videos, masks = write_clips(tmp_path, count)
    change(videos, masks)
    with pytest.raises(ValueError, match=message):
        find_clips(videos, masks, SETTINGS)


def test_missing_folder_and_missing_words(tmp_path):
    videos, masks = write_clips(tmp_path)
    with pytest.raises(ValueError, match="there is no folder .*nowhere.* of videos"):
        find_clips(tmp_path / "nowhere", masks, SETTINGS)
    with pytest.raises(ValueError, match="'clip0' has no prompt"):
        find_clips(videos, masks, MotionSettings())
    with pytest.raises(ValueError, match="'clip0' has masks but no phrase"):
        find_clips(videos, masks, MotionSettings(prompt="a ball"))
    assert find_clips(videos, None, MotionSettings(prompt="a ball"))[0].masks is None


def test_latents_and_masks_of_a_clip(tmp_path, tiny_video_model):
    videos, masks = write_clips(tmp_path)
    clips = load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS)
    assert clips[0].latents.shape == (2, 4, 5, 8, 8) and not clips[0].latents.is_inference()
    assert clips[0].masks.shape == (1, 5, 16, 16) and clips[0].masks.dtype == torch.uint8
    assert clips[0].masks[0, 0, 0].tolist() == [255] * 8 + [0] * 8
    # The second latents are those of the mirrored film.
    from mask_guided_video.recipes.films.files import read_film

    mirrored = tiny_video_model.encode(read_film(videos / "clip0.mp4").flip(2))
    assert torch.equal(clips[0].latents[1], mirrored[0])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((4, 16, 16), bool)), "'clip0' has 5 frames and 4 masks"),
        (lambda path: np.save(path, np.zeros((2, 5, 16, 16), bool)), "masks of 2 objects and 1 phrases"),
        (lambda path: path.write_bytes(b"no array"), "cannot be read as a NumPy array"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, tiny_video_model, write, message):
    videos, masks = write_clips(tmp_path)
    write(masks / "clip0.npy")
    with pytest.raises(ValueError, match=message):
        load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS)


def test_clips_that_cannot_be_used(tmp_path, tiny_video_model):
    videos, masks = write_clips(tmp_path)
    longer = MotionSettings(prompt="a ball", frames=6)
    with pytest.raises(ValueError, match="'clip0' has 5 frames at stride 1 and training takes 6"):
        load_clips(find_clips(videos, None, longer), tiny_video_model, longer)
    with pytest.raises(ValueError, match="width is 15; it must be a multiple of 2"):
        odd = MotionSettings(prompt="a ball", width=15)
        load_clips(find_clips(videos, None, odd), tiny_video_model, odd)
    (videos / "clip1.mp4").write_bytes((videos / "clip1.mp4").read_bytes()[:200])
    with pytest.raises(ValueError, match="clip1.mp4.* cannot be read as a video"):
        load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS)


def test_encoded_clips_are_kept_until_a_film_changes(tmp_path, tiny_video_model, monkeypatch):
    videos, masks = write_clips(tmp_path)
    cache, asked = tmp_path / "run" / "clips.safetensors", []
    encode = tiny_video_model.encode

    def counted(frames):
        asked.append(frames.shape[0])
        return encode(frames)

    monkeypatch.setattr(tiny_video_model, "encode", counted)

    def load(count):
        asked.clear()
        clips = load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS, cache)
        # One picture tells the VAE; each clip is encoded as filmed and mirrored.
        assert len(asked) == 1 + 2 * count
        return clips

    first, second = load(2), load(0)
    assert torch.equal(first[1].latents, second[1].latents) and torch.equal(first[1].masks, second[1].masks)
    write_film(videos / "clip0.mp4", torch.zeros(5, 16, 16, 3))
    assert not torch.equal(load(2)[0].latents, first[0].latents)
    cache.write_bytes(b"broken")
    load(2)
    assert [path.name for path in cache.parent.iterdir()] == ["clips.safetensors"]


def test_films_of_another_shape_are_cut_around_their_middle():
    pictures = torch.arange(8.0).expand(1, 3, 4, 8)
    assert fitted(pictures, 4, 4)[0, 0, 0].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert fitted(pictures, 2, 2).shape == (1, 3, 2, 2)
    assert fitted(pictures, 4, 8) is pictures


def square(left=6, right=10, size=16):
    masks = torch.zeros(1, 2, size, size, dtype=torch.uint8)
    masks[:, :, left:right, left:right] = 255
    return masks


def changed(settings, masks, seed=0):
    return augmented_masks(masks, settings, 2, np.random.default_rng(seed))


def test_masks_grow_and_shrink_by_cells_alike_in_all_frames():
    areas = {float(changed(MaskAugmentation(2, 0.0, 0.0), square(), seed).sum() / 2) for seed in range(40)}
    # Discs of 0, 2 and 4 pixels around a square of 4 x 4; shrinking would leave nothing, so it stays.
    assert len(areas) == 3 and min(areas) == 16.0 and max(areas) > 64.0
    assert changed(MaskAugmentation(0, 0.0, 0.0), square())[0, 0, 8, 8] == 1.0
    both = changed(MaskAugmentation(2, 0.0, 0.0), square(), 1)
    assert torch.equal(both[:, 0], both[:, 1])


def test_masks_become_boxes_or_are_dropped():
    cross = square() * 0
    cross[0, :, 4:12, 8] = 255
    cross[0, :, 8, 6:11] = 255
    boxed = changed(MaskAugmentation(0, 1.0, 0.0), cross)
    assert float(boxed[0, 0].sum()) == 8 * 5 and float(boxed[0, 0, 4:12, 6:11].min()) == 1.0
    assert changed(MaskAugmentation(0, 0.0, 1.0), square()) is None
    dropped = sum(changed(MaskAugmentation(0, 0.0, 0.25), square(), seed) is None for seed in range(400))
    assert 70 <= dropped <= 130


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"frames": 1}, "first frame is not learned from"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"precision": "half"}, "precision is 'half'"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        MotionSettings(**values)


def test_rate_rises_stays_and_falls():
    settings = MotionSettings(steps=100, learning_rate=1.0, warm_up=10, decay=0.2)
    assert [round(settings.rate(step), 3) for step in (0, 9, 50, 80, 90, 99)] == [0.1, 1.0, 1.0, 1.0, 0.5, 0.05]


def test_masks_that_are_empty_are_told(tmp_path, tiny_video_model, caplog):
    videos, masks = write_clips(tmp_path)
    load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS)
    assert "empty" not in caplog.text
    np.save(masks / "clip1.npy", np.zeros((5, 16, 16), bool))
    load_clips(find_clips(videos, masks, SETTINGS), tiny_video_model, SETTINGS)
    assert "the masks of the clip 'clip1' are empty in all frames for 'ball'" in caplog.text
