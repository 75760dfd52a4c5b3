"""Films as files: what is written is read again, and nothing half-written stays."""

import pytest
import torch

from mask_guided_video.recipes.films.files import (
    check_frames,
    enlarge,
    read_film,
    read_film_bytes,
    shown_enlargement,
    to_bytes,
    write_film,
    write_pictures,
)


def moving_square(frames=5, height=32, width=48):
    film = torch.full((frames, height, width, 3), 0.2)
    for frame in range(frames):
        film[frame, 8:20, 4 + 4 * frame : 16 + 4 * frame] = torch.tensor([0.9, 0.3, 0.2])
    return film


def test_to_bytes_rounds_and_clamps():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 2.0])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_enlarge_repeats_pixels():
    film = torch.tensor([[[1, 2], [3, 4]]])[..., None].expand(1, 2, 2, 3)
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert enlarge(film, 2)[0, :, :, 0].tolist() == expected


@pytest.mark.parametrize(("size", "expected"), [((64, 64), 4), ((64, 128), 2), ((256, 256), 1), ((320, 512), 1)])
def test_small_films_are_shown_large(size, expected):
    assert shown_enlargement(*size) == expected


def test_written_film_is_read_again(tmp_path):
    film = moving_square()
    write_film(tmp_path / "film.mp4", film, enlargement=2)
    again = read_film(tmp_path / "film.mp4")
    assert again.shape == (5, 64, 96, 3)
    assert (again - enlarge(film, 2)).abs().mean() < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_same_film_gives_same_file(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_film(tmp_path / name, moving_square())
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 33, 47), (3, 1, 1)])
def test_odd_sizes_and_single_frames(tmp_path, frames, height, width):
    write_film(tmp_path / "film.mp4", torch.rand(frames, height, width, 3))
    again = read_film(tmp_path / "film.mp4")
    assert again.shape == (frames, height + height % 2, width + width % 2, 3)


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (torch.zeros(0, 8, 8, 3), r"\(0, 8, 8, 3\)"),
        (torch.zeros(2, 8, 8), r"\(2, 8, 8\)"),
        (torch.full((1, 8, 8, 3), float("nan")), "NaN"),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, film, message):
    with pytest.raises(ValueError, match=message):
        check_frames(film)
    with pytest.raises(ValueError, match=message):
        write_film(tmp_path / "film.mp4", film)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_rate(tmp_path):
    with pytest.raises(ValueError, match="folder does not exist"):
        write_film(tmp_path / "none" / "film.mp4", moving_square())
    with pytest.raises(ValueError, match="frames_per_second is 0"):
        write_film(tmp_path / "film.mp4", moving_square(), 0)


def test_unreadable_films(tmp_path):
    with pytest.raises(ValueError, match="no video"):
        read_film(tmp_path / "none.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    with pytest.raises(ValueError, match="cannot be read"):
        read_film(tmp_path / "broken.mp4")


def test_metadata_and_quality(tmp_path):
    import av

    pictures = list(to_bytes(torch.rand(3, 32, 48, 3)))
    for name, crf in (("fine.mp4", 10), ("coarse.mp4", 45)):
        write_pictures(tmp_path / name, pictures, 8, crf, {"workflow": '{"nodes": []}', "prompt": "{}"})
    assert (tmp_path / "coarse.mp4").stat().st_size < (tmp_path / "fine.mp4").stat().st_size
    with av.open(str(tmp_path / "fine.mp4")) as film:
        assert film.metadata["workflow"] == '{"nodes": []}' and film.metadata["prompt"] == "{}"
    with pytest.raises(ValueError, match="crf is 52"):
        write_pictures(tmp_path / "film.mp4", pictures, 8, 52)


def test_pictures_of_two_sizes_are_no_film(tmp_path):
    pictures = [torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(8, 10, 3, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) and \(8, 10, 3\)"):
        write_pictures(tmp_path / "film.mp4", pictures)
    assert not list(tmp_path.iterdir())


def test_a_film_without_pictures_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no pictures for"):
        write_pictures(tmp_path / "film.mp4", iter(()))
    assert not list(tmp_path.iterdir())


def test_a_film_is_read_in_bytes_with_its_rate(tmp_path):
    write_film(tmp_path / "film.mp4", moving_square(), 12.5)
    film, rate = read_film_bytes(tmp_path / "film.mp4")
    assert film.dtype == torch.uint8 and film.shape == (5, 32, 48, 3) and rate == 12.5
    assert torch.equal(film.float() / 255, read_film(tmp_path / "film.mp4"))
