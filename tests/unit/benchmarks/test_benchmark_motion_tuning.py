"""The motion accuracy table, on numbers that can be checked by hand."""

import pytest


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("motion_tuning")


def film(model, number, error, locked=True, masked=False):
    return {
        **{"motion": "circle", "model": model, "locked": locked, "masked": masked, "number": number},
        **{"error": error, "overlap": 0.25 * (number + 1), "shape": number == 0},
    }


def test_table(benchmark):
    films = [film("tuned", 0, 1.0), film("tuned", 1, 4.9), film("tuned", 2, 6.0), film("untuned", 0, None)]
    untuned, tuned = benchmark.summarise(films, "circle")
    assert tuned["follow"] == pytest.approx(2 / 3) and tuned["error"] == 4.9 and tuned["overlap"] == 0.5
    assert untuned["follow"] == 0.0 and untuned["error"] == float("inf")
    assert "| tuned | given | no | 3 | 67% | 4.9 | 0.50 | 33% |" in benchmark.table([tuned])
    assert benchmark.summarise(films, "zigzag") == []


def test_what_is_measured_was_not_tuned_on(benchmark):
    assert not set(benchmark.TRAINED) & set(benchmark.NEW)
    colours, shapes = ({pair[place] for pair in benchmark.TRAINED} for place in (0, 1))
    assert all(colour not in colours or shape not in shapes for colour, shape in benchmark.NEW)
    scenes = [benchmark.scene_of("circle", number, benchmark.TRAINED, 0) for number in range(8)]
    assert len({(scene.objects[0].colour, scene.objects[0].shape) for scene in scenes}) == 8
    assert len({scene.background for scene in scenes}) == 4


def test_clips_are_written_for_the_command_line(benchmark, tmp_path):
    from mask_guided_video.training.motion.data import find_clips
    from mask_guided_video.training.motion.settings import MotionSettings

    benchmark.write_clips(tmp_path, "circle")
    clips = find_clips(tmp_path / "videos", tmp_path / "masks", MotionSettings())
    assert len(clips) == 8 and clips[0].words.prompt == "a red ball moves on grass"
    assert clips[0].words.phrases == ("red ball",) and clips[0].words.background == "grass"
