"""Films between stages lie on disk."""

from collections import namedtuple

import pytest
import torch

from mask_guided_video.recipes.films.stored_film import stored_film


def test_it_is_a_film_without_a_name(tmp_path):
    film = stored_film(tmp_path, 3, 4, 5)
    assert film.shape == (3, 4, 5, 3) and film.dtype == torch.float32 and not film.any()
    frames = torch.rand(3, 4, 5, 3)
    film[:] = frames
    assert torch.equal(film, frames)
    del film
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_a_page_is_missing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(100))
    with pytest.raises(OSError, match="its frames take"):
        stored_film(tmp_path, 3, 4, 5)
