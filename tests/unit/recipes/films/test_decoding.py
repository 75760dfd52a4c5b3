"""Films and pictures as a viewer shows them: upright, in their colours, or refused in a sentence."""

import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mask_guided_video.recipes.films.colours import (
    BT601,
    BT709,
    MATRICES,
    guessed_matrix,
    planes_of,
    rgb_of,
)
from mask_guided_video.recipes.films.files import (
    enlarge,
    read_film,
    read_film_bytes,
    read_picture,
    to_bytes,
    write_film,
    write_pictures,
)

ONE = 0x10000
# Corners of the picture below: red, green, blue and white, from the top left in reading direction.
RED, GREEN, BLUE, WHITE = (230, 26, 26), (26, 200, 26), (26, 26, 230), (230, 230, 230)
SWATCHES = (RED, GREEN, BLUE, WHITE, (128, 128, 128), (0, 0, 0), (255, 255, 255), (200, 150, 90))


def corners(height=64, width=96):
    picture = torch.empty(height, width, 3)
    middle, centre = height // 2, width // 2
    for rows, columns, colour in (
        (slice(None, middle), slice(None, centre), RED),
        (slice(None, middle), slice(centre, None), GREEN),
        (slice(middle, None), slice(None, centre), BLUE),
        (slice(middle, None), slice(centre, None), WHITE),
    ):
        picture[rows, columns] = torch.tensor(colour) / 255
    return picture


def named(picture):
    """The names of the corners' colours, in reading direction."""
    height, width = picture.shape[:2]
    found = [picture[row, column] for row in (8, height - 8) for column in (8, width - 8)]
    colours = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}
    near = [
        min(colours, key=lambda name: float((torch.tensor(colours[name]) / 255 - value).abs().sum())) for value in found
    ]
    return " ".join(near)


def with_matrix(path, matrix):
    """The same file with another matrix in its track header, as telephones write it."""
    data = bytearray(path.read_bytes())
    box = data.find(b"tkhd")
    start = box + 8 + (32 if data[box + 4] == 1 else 20) + 16
    a, b, c, d = (value * ONE & 0xFFFFFFFF for value in matrix)
    data[start : start + 36] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "shape", "expected"),
    [
        ((1, 0, 0, 1), (64, 96), "red green blue white"),
        ((0, 1, -1, 0), (96, 64), "blue red white green"),
        ((-1, 0, 0, -1), (64, 96), "white blue green red"),
        ((0, -1, 1, 0), (96, 64), "green white red blue"),
        ((-1, 0, 0, 1), (64, 96), "green red white blue"),
        ((1, 0, 0, -1), (64, 96), "blue white red green"),
        ((0, 1, 1, 0), (96, 64), "red blue green white"),
        ((0, 0, 0, 0), (64, 96), "red green blue white"),
    ],
)
def test_films_are_turned_as_their_container_says(tmp_path, matrix, shape, expected):
    path = tmp_path / "film.mp4"
    write_film(path, corners().expand(2, -1, -1, -1))
    with_matrix(path, matrix)
    film = read_film(path)
    assert film.shape == (2, *shape, 3) and named(film[1]) == expected


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, "red green blue white"),
        (2, "green red white blue"),
        (3, "white blue green red"),
        (4, "blue white red green"),
        (5, "red blue green white"),
        (6, "blue red white green"),
        (7, "white green blue red"),
        (8, "green white red blue"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_as_they_say(tmp_path, suffix, orientation, expected):
    picture = Image.fromarray(to_bytes(corners()).numpy())
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"picture.{suffix}", exif=exif)
    found = read_picture(tmp_path / f"picture.{suffix}")
    assert found.shape[:2] == ((64, 96) if orientation < 5 else (96, 64)) and named(found) == expected


def test_pictures_of_16_bits_keep_their_greys(tmp_path):
    Image.fromarray(np.array([[0, 20000, 65535]], np.uint16)).save(tmp_path / "deep.png")
    expected = torch.tensor([0.0, 20000 / 65535, 1.0])[None, :, None].expand(1, 3, 3)
    assert torch.allclose(read_picture(tmp_path / "deep.png"), expected)


@pytest.mark.parametrize("matrix", sorted({matrix.name: matrix for matrix in MATRICES.values()}.items()))
def test_colours_come_back_from_luma_and_chroma(matrix):
    colours = torch.tensor(SWATCHES, dtype=torch.uint8)[None]
    planes = planes_of(colours, matrix[1])
    assert planes[0].min() >= 16 and planes.max() <= 240
    again = torch.from_numpy(rgb_of(planes, matrix[1]))
    assert (again.int() - colours.int()).abs().max() <= 2
    # Once in whole numbers, they stay as they are.
    assert np.array_equal(planes_of(again, matrix[1]), planes)


def test_known_colours_of_both_matrices():
    red = torch.tensor([[[255, 0, 0]]], dtype=torch.uint8)
    assert planes_of(red, BT601).ravel().tolist() == [81, 90, 240]
    assert planes_of(red, BT709).ravel().tolist() == [63, 102, 240]
    full = np.array([[[76]], [[85]], [[255]]], np.uint8)
    assert rgb_of(full, BT601, full=True).ravel().tolist() == [254, 0, 0]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(320, 512, BT601), (720, 1280, BT709), (1280, 704, BT709), (576, 720, BT601)]
)
def test_films_of_any_size_name_the_matrix_that_players_take(tmp_path, height, width, expected):
    path = tmp_path / "film.mp4"
    write_film(path, torch.tensor(RED).div(255).expand(1, height, width, 3))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
    assert guessed_matrix(height, width) is expected and MATRICES[int(frame.colorspace)] is expected
    # Limited range; colours and their curve as of sRGB.
    assert int(frame.color_range) == 1
    if hasattr(context, "color_primaries"):
        assert int(context.color_primaries) == 1 and int(context.color_trc) == 13
    luma = frame.to_ndarray()[height // 2, width // 2]
    assert abs(int(luma) - int(planes_of(torch.tensor([[RED]], dtype=torch.uint8), expected)[0, 0, 0])) <= 1


@pytest.mark.parametrize("height", [64, 720])
def test_colours_do_not_drift_from_copy_to_copy(tmp_path, height):
    film = torch.cat([torch.tensor(colour).div(255).expand(1, height, 32, 3) for colour in SWATCHES], dim=2)
    copy = film
    for _ in range(4):
        write_film(tmp_path / "film.mp4", copy)
        copy = read_film(tmp_path / "film.mp4")
    middles = slice(16, None, 32)
    difference = (copy - film)[0, height // 2, middles].abs().max() * 255
    assert float(difference) <= 3.0


def test_enlarged_pixels_stay_apart(tmp_path):
    small = torch.rand(2, 12, 16, 3, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    write_film(tmp_path / "film.mp4", small, enlargement=4)
    assert (read_film(tmp_path / "film.mp4") - enlarge(small, 4)).abs().max() * 255 < 12
    write_pictures(tmp_path / "film.mp4", [enlarge(to_bytes(frame[None]), 2)[0] for frame in small], crf=0)
    assert (read_film(tmp_path / "film.mp4") - enlarge(small, 2)).abs().max() * 255 < 4


@pytest.mark.parametrize(
    ("kind", "options", "tagged", "size"),
    [
        ("yuv422p", {"colorspace": "bt709"}, "bt709", (64, 64)),
        ("yuv420p10le", {"colorspace": "bt709"}, "bt709", (66, 64)),
        ("yuv420p", {}, None, (64, 64)),
        ("yuv420p", {}, None, (720, 64)),
        ("yuv444p", {"colorspace": "bt2020nc"}, "bt2020nc", (64, 64)),
        ("yuvj420p", {"colorspace": "bt709", "color_range": "pc"}, "bt709", (64, 64)),
    ],
)
def test_films_of_others_have_the_colours_that_players_show(tmp_path, kind, options, tagged, size):
    matrix = guessed_matrix(*size) if tagged is None else next(m for m in MATRICES.values() if m.name == tagged)
    picture = torch.tensor(RED, dtype=torch.uint8).expand(*size, 3)
    planes = planes_of(picture, matrix)
    if kind == "yuvj420p":
        planes = np.stack([(planes[0] - 16.0) * 255 / 219, *((planes[1:] - 128.0) * 255 / 224 + 128)]).round()
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *size, kind
        full = "yuvj444p" if kind == "yuvj420p" else "yuv444p"
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8), format=full)
        container.mux(stream.encode(frame.reformat(format=kind)))
        container.mux(stream.encode())
    found = read_film_bytes(tmp_path / "film.mp4")[0][0, 32, 32]
    assert (found.int() - torch.tensor(RED)).abs().max() <= 3


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.7, 7.5, 8.0, 23.976, 30000 / 1001, 59.94, 1000.0])
def test_films_have_the_rate_that_was_asked_for(tmp_path, rate):
    write_film(tmp_path / "film.mp4", torch.zeros(3, 16, 16, 3), rate)
    assert read_film_bytes(tmp_path / "film.mp4")[1] == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("rate", [0.0001, 0.0, -8.0, 1001.0, float("nan"), float("inf")])
def test_rates_of_no_film_are_refused(tmp_path, rate):
    with pytest.raises(ValueError, match="frames_per_second is .* from 0.01 to 1000"):
        write_film(tmp_path / "film.mp4", torch.zeros(3, 16, 16, 3), rate)
    assert not list(tmp_path.iterdir())


def test_a_film_whose_size_changes_is_refused(tmp_path):
    joined = b""
    for side in (64, 32):
        with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.height = stream.width = side
            stream.pix_fmt = "yuv420p"
            for _ in range(4):
                frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        joined += (tmp_path / "part.ts").read_bytes()
    (tmp_path / "film.ts").write_bytes(joined)
    with pytest.raises(ValueError, match=r"frame 4 of .* is 32 x 32 pixels and its first 64 x 64"):
        read_film(tmp_path / "film.ts")


def test_sound_and_folders_are_no_films(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no pictures in it, only sound"):
        read_film(tmp_path / "sound.mp4")
    with pytest.raises(ValueError, match="is a folder; give a video file"):
        read_film(tmp_path)
    with pytest.raises(ValueError, match="is a folder; give a file"):
        read_picture(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["film.mp4", "film.gif", "picture.png", "picture.jpg", "picture.tif", "picture.webp"])
def test_damaged_files_are_read_or_refused(tmp_path, name):
    path = tmp_path / name
    if name.startswith("film.mp4"):
        write_film(path, corners(32, 48).expand(2, -1, -1, -1))
    else:
        Image.fromarray(to_bytes(corners(32, 48)).numpy()).save(path)
    whole = path.read_bytes()
    read = read_film if name.startswith("film") else read_picture
    chance = np.random.default_rng(0)
    outcomes = set()
    for trial in range(40):
        damaged = bytearray(whole)
        if trial % 4:
            for place in chance.integers(0, min(len(whole), 200), 1 + trial % 5):
                damaged[place] = chance.integers(256)
        else:
            del damaged[chance.integers(len(whole)) :]
        path.write_bytes(damaged)
        try:
            outcomes.add(read(path).ndim)
        except ValueError as error:
            outcomes.add("refused")
            assert name in str(error) and "\n" not in str(error)
    assert "refused" in outcomes
