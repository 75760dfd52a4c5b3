"""Mask metrics from the command line, on drawn films and the Toybox models."""

import json

import numpy as np
import pytest
import torch

from mask_guided_video.perception.frames import Film
from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.recipes.mask_metrics.files import match_clips
from mask_guided_video.recipes.mask_metrics.report import film_report, mean_report, metrics_summary
from mask_guided_video.toybox import world

BALL = world.SceneObject("red", "ball", "right", 11.0, (18.0, 32.0), 28.0)


@pytest.fixture(scope="module")
def clip():
    return world.render(world.Scene("sand", (BALL,)))


@pytest.fixture
def folder(clip, tmp_path):
    """A film, its masks as a NumPy file and as pictures, and another film on the same sand."""
    from PIL import Image

    write_film(tmp_path / "film.mp4", torch.from_numpy(clip.frames))
    np.save(tmp_path / "masks.npy", clip.masks)
    (tmp_path / "pictures").mkdir()
    for frame, mask in enumerate(clip.masks[0]):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "pictures" / f"{frame:03}.png")
    other = world.SceneObject("red", "ball", "still", 11.0, (32.0, 14.0), 0.0)
    write_film(tmp_path / "other.mp4", torch.from_numpy(world.render(world.Scene("sand", (other,))).frames))
    return tmp_path


def measure(cli, folder, *words):
    out = folder / "out"
    code = cli.main(["metrics", *map(str, words), "--out", str(out), "--quiet"])
    return code, json.loads((out / "metrics.json").read_text()) if code == 0 else None


def test_a_film_its_masks_and_a_reference(cli, folder, capsys):
    code, report = measure(
        cli, folder, folder / "film.mp4", "--masks", folder / "masks.npy", "--object", "red ball",
        "--reference", folder / "other.mp4",
    )  # fmt: skip
    (film,) = report["clips"]
    assert code == 0 and film["film"] == {"frames": 8, "height": 64, "width": 64}
    assert film["iou"] > 0.9 and film["objects"][0]["phrase"] == "red ball"
    # The balls of both films are no background; the sand is the same.
    assert film["background_change"] < 0.02 and film["text_alignment"] is None
    assert report["mean"]["iou"] == film["iou"]
    words = capsys.readouterr().out
    assert "red ball: IoU 0.9" in words and "text alignment: not measured" in words and "metrics.json" in words


def test_a_path_and_found_masks_need_no_models(cli, folder, clip):
    """The ball is drawn with radius 11 along a line: the path's own ellipse is the drawn disc."""
    keyframes = [
        {"frame": 0, "x": 18 / 64, "y": 0.5, "width": 22 / 64, "height": 22 / 64},
        {"frame": 7, "x": 46 / 64, "y": 0.5},
    ]
    (folder / "path.json").write_text(json.dumps([{"shape": "ellipse", "keyframes": keyframes}]))
    code, report = measure(
        cli, folder, folder / "film.mp4", "--path", folder / "path.json", "--found", folder / "masks.npy",
        "--object", "red ball", "--detector", "nowhere",
    )  # fmt: skip
    assert code == 0 and report["mean"]["iou"] > 0.95 and report["clips"][0]["objects"][0]["phrase"] == "red ball"


def test_folders_pair_by_name(cli, folder, clip):
    films, masks = folder / "films", folder / "many"
    films.mkdir(), masks.mkdir()
    for name in ("a", "b"):
        (films / f"{name}.mp4").write_bytes((folder / "film.mp4").read_bytes())
    np.save(masks / "b.npy", clip.masks[:, ::-1].copy())
    (folder / "pictures").rename(masks / "a")
    found = folder / "found"
    found.mkdir()
    for name in ("a", "b"):
        np.save(found / f"{name}.npy", clip.masks)
    code, report = measure(cli, folder, films, "--masks", masks, "--found", found)
    assert code == 0 and [entry["name"] for entry in report["clips"]] == ["a", "b"]
    first, second = (entry["iou"] for entry in report["clips"])
    assert first == 1.0 and second < 0.6 and report["mean"]["iou"] == pytest.approx((first + second) / 2, abs=1e-3)


def test_nothing_found_is_a_result(cli, folder):
    np.save(folder / "none.npy", np.zeros((0, 8, 64, 64), dtype=bool))
    code, report = measure(
        cli, folder, folder / "film.mp4", "--masks", folder / "pictures", "--found", folder / "none.npy"
    )
    assert code == 0 and report["mean"] | {"iou": None} == dict.fromkeys(report["mean"]) and report["mean"]["iou"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--masks", "short.npy", "--object", "ball"], "masks for 5 frames and film.mp4 has 8"),
        (["--masks", "masks.npy", "--object", "a", "--object", "b"], "masks for 1 objects and 2 phrases"),
        (["--masks", "masks.npy"], "lacks a phrase to look for"),
        (["--masks", "nowhere.npy", "--object", "ball"], "no mask file"),
        (["--masks", "empty", "--object", "ball"], "holds no .png files"),
        (
            ["--masks", "tall.npy", "--object", "ball"],
            "masks of tall.npy are 64 x 128 pixels but the video film.mp4 64 x 64",
        ),
        (["--masks", "masks.npy", "--object", "."], "phrase '.' names nothing"),
        (["--path", "nowhere.json"], "cannot be read"),
        (["--path", "path.json", "--object", "a", "--object", "b"], "1 objects and there are 2 phrases"),
        (["--masks", "masks.npy", "--object", "ball", "--clip", "empty"], "not a folder of a CLIP model"),
        (["--masks", "masks.npy", "--object", "ball", "--reference", "broken.mp4"], "broken.mp4"),
        (["--masks", "masks.npy", "--object", "ball", "--detect-every", "0"], "every is 0"),
        (["--masks", "none.npy", "--object", "ball"], "(0, 8, 64, 64)"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(cli, folder, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(folder)
    np.save("short.npy", np.zeros((1, 5, 8, 8), dtype=bool))
    np.save("tall.npy", np.zeros((1, 8, 128, 64), dtype=bool))
    np.save("none.npy", np.zeros((0, 8, 64, 64), dtype=np.uint8))
    (folder / "empty").mkdir()
    (folder / "broken.mp4").write_bytes(b"no film")
    (folder / "path.json").write_text('{"keyframes": [{"frame": 0, "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}]}')
    code, _ = measure(cli, folder, "film.mp4", *changes)
    captured = capsys.readouterr()
    assert code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert not (folder / "out").exists()


class TestFolders:
    @pytest.fixture
    def films(self, tmp_path):
        (tmp_path / "films").mkdir()
        for name in ("a.mp4", "b.gif", "notes.txt", ".hidden.mp4"):
            (tmp_path / "films" / name).write_bytes(b"")
        (tmp_path / "masks").mkdir()
        return tmp_path / "films"

    def test_another_number(self, films):
        masks = films.parent / "masks"
        (masks / "a.npy").write_bytes(b"")
        with pytest.raises(ValueError, match="2 videos and 1 entries for masks"):
            match_clips(films, masks)

    def test_another_name(self, films):
        masks = films.parent / "masks"
        for name in ("a.npy", "c.npy"):
            (masks / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"video b.gif has no entry .* name it b"):
            match_clips(films, masks)

    def test_one_name_twice(self, films):
        (films / "a.webm").write_bytes(b"")
        with pytest.raises(ValueError, match="a.mp4 and a.webm"):
            match_clips(films)

    def test_a_file_for_a_folder_and_a_folder_without_films(self, films):
        with pytest.raises(ValueError, match="give a folder with one entry for each"):
            match_clips(films, films / "a.mp4")
        with pytest.raises(ValueError, match="holds no videos"):
            match_clips(films.parent / "masks")

    def test_an_unreadable_film_is_named_before_anything_runs(self, cli, folder, capsys):
        films, masks = folder / "films", folder / "many"
        films.mkdir(), masks.mkdir()
        (films / "good.mp4").write_bytes((folder / "film.mp4").read_bytes())
        (films / "torn.mp4").write_bytes((folder / "film.mp4").read_bytes()[:300])
        for name in ("good", "torn"):
            np.save(masks / f"{name}.npy", np.ones((1, 8, 8, 8), dtype=bool))
        code, _ = measure(cli, folder, films, "--masks", masks, "--object", "ball", "--detector", "nowhere")
        assert code == 2 and "torn.mp4" in capsys.readouterr().err


class TestReport:
    class Scorer:
        def score(self, film, prompt, progress=None):
            return {"text_alignment": float(len(prompt)), "frame_consistency": None}

    def test_all_measures_and_their_means(self):
        from mask_guided_video.perception.tracks import Tracks

        film = Film(torch.full((2, 8, 8, 3), 0.5))
        tracks = Tracks.from_masks(torch.ones(1, 2, 8, 8), ("ball",))
        report = film_report(film, tracks, tracks, "four", self.Scorer(), Film(torch.full((2, 8, 8, 3), 0.25)))
        assert report["iou"] == 1 and report["text_alignment"] == 4 and report["frame_consistency"] is None
        assert report["background_change"] is None
        other = film_report(film, Tracks.empty(2, 8, 8), tracks, "", None, Film(torch.full((2, 8, 8, 3), 0.25)))
        assert mean_report([report, other])["text_alignment"] == 4
        assert metrics_summary(report).startswith("ball: IoU 1.000, middle off by 0.0 % of the diagonal")
        assert "frame consistency: not measured" in metrics_summary(report)

    def test_words_for_what_was_not_there(self):
        from mask_guided_video.perception.tracks import Tracks

        film, empty = Film(torch.zeros(2, 8, 8, 3)), Tracks.empty(2, 8, 8)
        nothing = Tracks.from_masks(torch.zeros(1, 2, 8, 8), ("ball",))
        something = Tracks.from_masks(torch.ones(2, 2, 8, 8), ("ball", "ball"))
        assert "ball: neither wanted nor found" in metrics_summary(film_report(film, nothing, empty))
        assert "never found where it is wanted" in metrics_summary(film_report(film, something, empty))
        lone = something.select([0])
        assert "1 more of these objects" in metrics_summary(film_report(film, lone, something))


class TestPeekaboo:
    def test_boxes_of_the_detector(self, cli, folder, capsys):
        """A ball of 22 pixels across in a box of the same size: nearly the whole box agrees, 8 frames cover nothing."""
        (ball,) = np.load(folder / "masks.npy")
        boxes = np.zeros((1, *ball.shape), dtype=bool)
        for frame, mask in enumerate(ball):
            rows, columns = np.nonzero(mask)
            boxes[0, frame, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        np.save(folder / "boxes.npy", boxes)
        code, report = measure(
            cli, folder, folder / "film.mp4", "--masks", folder / "boxes.npy", "--object", "red ball",
            "--protocol", "peekaboo",
        )  # fmt: skip
        (entry,) = report["clips"][0]["peekaboo"]
        assert code == 0 and entry["phrase"] == "red ball" and entry["frames"] == entry["detections"] == 8
        assert entry["corrected"]["iou"] > 0.8 and entry["corrected"]["ap50"] == 1
        assert entry["corrected"]["centroid_distance"] < 0.02
        summary = report["peekaboo"]
        assert summary["published"]["coverage"] == 0 and summary["published"]["miou"] is None
        assert summary["corrected"]["coverage"] == 1 and summary["corrected"]["miou"] == entry["corrected"]["iou"]
        assert "mIoU of covered clips: not defined | 0." in capsys.readouterr().out

    def test_found_masks_and_none_without_the_option(self, cli, folder, clip):
        np.save(folder / "half.npy", np.concatenate([clip.masks[:, :4], np.zeros_like(clip.masks[:, 4:])], axis=1))
        words = folder / "film.mp4", "--masks", folder / "masks.npy", "--found", folder / "half.npy"
        _, plain = measure(cli, folder, *words)
        assert "peekaboo" not in plain and "peekaboo" not in plain["clips"][0]
        _, report = measure(cli, folder, *words, "--protocol", "peekaboo")
        entry = report["clips"][0]["peekaboo"][0]
        sizes = clip.masks[0].sum((1, 2))
        assert entry["corrected"]["iou"] == pytest.approx(sizes[:4].sum() / sizes.sum(), abs=1e-4)
        assert entry["frames_detected"] == 4 and entry["corrected"]["centroid_distance"] == 0
        assert entry["published"]["centroid_distance"] > 0.02
        assert {name: report[name] for name in ("mean", "prompt")} == {name: plain[name] for name in ("mean", "prompt")}
