"""Masks in the formats that people have them in: read as what they are, or refused; never empty or inside out."""

import numpy as np
import pytest
import torch
from PIL import Image

from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.recipes.given.masks import read_masks

SIDE = 32
SQUARE = np.zeros((SIDE, SIDE), bool)
SQUARE[8:16, 8:16] = True
OTHER = np.zeros((SIDE, SIDE), bool)
OTHER[20:28, 4:12] = True
HARD = torch.from_numpy(SQUARE).float()
BYTES = SQUARE.astype(np.uint8) * 255
LABELS = SQUARE.astype(np.uint8) + 2 * OTHER.astype(np.uint8)
DAVIS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
GREYS = [value for grey in range(256) for value in (grey, grey, grey)]


def flat(value):
    return np.full((SIDE, SIDE), value, np.uint8)


def indexed(values, palette):
    picture = Image.fromarray(values.astype(np.uint8), "L")
    picture = picture.copy()
    picture.putpalette(palette)
    return picture


def rgba(colours, alpha):
    return Image.fromarray(np.dstack([*colours, alpha]))


ONE_OBJECT = {
    "white on black": ("png", Image.fromarray(BYTES)),
    "one bit": ("png", Image.fromarray(SQUARE)),
    "in colour, but grey": ("png", Image.fromarray(np.dstack([BYTES] * 3))),
    "bitmap": ("bmp", Image.fromarray(BYTES)),
    "lossless WebP": ("webp", Image.fromarray(np.dstack([BYTES] * 3))),
    "one label": ("png", Image.fromarray(SQUARE.astype(np.uint8))),
    "label 7": ("png", Image.fromarray(SQUARE.astype(np.uint8) * 7)),
    "indexed, object 1": ("png", indexed(SQUARE, DAVIS)),
    "indexed, object 3": ("png", indexed(SQUARE * 3, DAVIS)),
    "indexed, background transparent": ("transparent png", indexed(SQUARE, [90, 20, 20, 128, 0, 0])),
    "indexed greys": ("png", indexed(BYTES, GREYS)),
    "indexed, white first": ("png", indexed(~SQUARE, [255, 255, 255, 0, 0, 0])),
    "opaque on transparent, black": ("png", rgba([flat(0)] * 3, BYTES)),
    "opaque on transparent, white": ("png", rgba([flat(255)] * 3, BYTES)),
    "opaque on transparent, red": ("png", rgba([flat(200), flat(0), flat(0)], BYTES)),
    "white on transparent black": ("png", rgba([BYTES] * 3, BYTES)),
    "grey and alpha": ("png", Image.fromarray(np.dstack([flat(255), BYTES]))),
    "alpha that is opaque": ("png", rgba([BYTES] * 3, flat(255))),
    "16 bits": ("png", Image.fromarray(SQUARE.astype(np.uint16) * 65535)),
    "16 bits, one label": ("png", Image.fromarray(SQUARE.astype(np.uint16))),
    "16 bits that hold 8": ("tif", Image.fromarray(SQUARE.astype(np.uint16) * 255)),
    "float TIFF": ("tif", Image.fromarray(SQUARE.astype(np.float32))),
    "32 bit TIFF of labels": ("tif", Image.fromarray(SQUARE.astype(np.int32) * 100_000)),
}


@pytest.mark.parametrize("name", ONE_OBJECT)
def test_pictures_of_one_object(tmp_path, name):
    kind, picture = ONE_OBJECT[name]
    path = tmp_path / f"mask.{kind.split()[-1]}"
    picture.save(path, **({"transparency": 0} if kind.startswith("transparent") else {}), **lossless(kind))
    assert torch.equal(read_masks(path), HARD[None])


def lossless(kind):
    return {"lossless": True} if kind == "webp" else {}


REFUSED = {
    "a photograph with a cut-out": (
        rgba([np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8), flat(9), flat(9)], BYTES),
        "either part may be the object",
    ),
    "white drawn where it is transparent": (rgba([BYTES] * 3, 255 - BYTES), "either part may be the object"),
    "red on black": (Image.fromarray(np.dstack([BYTES // 2, flat(0), flat(0)])), "is a picture in colour"),
    "a palette that begins with red": (indexed(~SQUARE, [200, 0, 0, 0, 0, 0]), r"is \(200, 0, 0\) instead of black"),
    "too dim": (Image.fromarray(np.linspace(0, 100, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)), "too dim"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_could_mean_two_things_are_refused(tmp_path, name):
    picture, words = REFUSED[name]
    picture.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=words):
        read_masks(tmp_path / "mask.png")


def test_labels_beside_pixels_to_leave_out_are_refused(tmp_path):
    values = LABELS.copy()
    values[7, 8:16] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="labels up to 2 beside 255, which stands for pixels to leave out"):
        read_masks(tmp_path / "mask.png")


def test_greys_stay_greys(tmp_path):
    soft = np.where(SQUARE, 255, 40).astype(np.uint8)
    deep = np.where(SQUARE, 65535, 20000).astype(np.uint16)
    real = np.where(SQUARE, 0.4, 0.1).astype(np.float32)
    for values, expected in ((soft, soft / 255), (deep, deep / 65535), (real, real)):
        Image.fromarray(values).save(tmp_path / "mask.tif")
        assert torch.allclose(read_masks(tmp_path / "mask.tif")[0], torch.from_numpy(expected.astype(np.float32)))
    Image.fromarray(np.dstack([flat(255)] * 3 + [soft])).save(tmp_path / "mask.png")
    assert torch.allclose(read_masks(tmp_path / "mask.png")[0], torch.from_numpy(soft / 255).float())


@pytest.mark.parametrize("palette", [None, DAVIS])
def test_labels_of_several_objects_come_apart(tmp_path, palette):
    picture = Image.fromarray(LABELS) if palette is None else indexed(LABELS, palette)
    picture.save(tmp_path / "mask.png")
    masks = read_masks(tmp_path / "mask.png")
    assert masks.shape == (2, 1, SIDE, SIDE)
    assert torch.equal(masks[:, 0], torch.from_numpy(np.stack([SQUARE, OTHER])).float())


def test_a_folder_is_read_as_a_whole(tmp_path):
    # In the first frame is only the second object, in the last one none, and that is saved otherwise.
    frames = [indexed(2 * OTHER, DAVIS), *(indexed(LABELS, DAVIS) for _ in range(9)), Image.fromarray(SQUARE & OTHER)]
    for number, picture in enumerate(frames):
        picture.save(tmp_path / f"frame{number}.png")
    (tmp_path / "._frame0.png").write_bytes(b"not a picture")
    masks = read_masks(tmp_path)
    assert masks.shape == (2, 11, SIDE, SIDE)
    # Frame 10 comes behind frame 9, though its name comes before.
    assert masks.flatten(2).amax(-1).tolist() == [[0.0, *[1.0] * 9, 0.0], [1.0] * 10 + [0.0]]


def test_a_dark_frame_beside_bright_ones_is_no_label(tmp_path):
    for number, values in enumerate((BYTES, BYTES // 8)):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    assert read_masks(tmp_path)[1].max() == pytest.approx(31 / 255)


def test_folders_of_other_pictures(tmp_path):
    for number in range(2):
        Image.fromarray(np.dstack([BYTES] * 3)).save(tmp_path / f"{number}.jpg", quality=95)
    assert torch.equal(read_masks(tmp_path) > 0.5, HARD.bool().expand(2, -1, -1))
    Image.fromarray(BYTES).save(tmp_path / "0.bmp")
    with pytest.raises(ValueError, match=r"holds \.bmp and \.jpg files"):
        read_masks(tmp_path)


def test_folders_that_do_not_agree_are_refused(tmp_path):
    rgba([flat(0)] * 3, BYTES).save(tmp_path / "0.png")
    Image.fromarray(BYTES).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="some pictures .* have transparency"):
        read_masks(tmp_path)
    indexed(LABELS, DAVIS).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="coloured by a palette and others are not"):
        read_masks(tmp_path)
    Image.fromarray(BYTES[:16]).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0.png and 1.png .* are \[16, 32\] and \[32, 32\] pixels"):
        read_masks(tmp_path)


def test_animated_pictures_have_a_mask_a_frame(tmp_path):
    frames = [Image.fromarray(values) for values in (BYTES, 255 - BYTES, BYTES)]
    for name in ("mask.png", "mask.tif", "mask.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        masks = read_masks(tmp_path / name)
        assert masks.shape == (3, SIDE, SIDE) and torch.equal(masks[1] > 0.5, HARD == 0), name


def test_masks_of_pictures_are_upright(tmp_path):
    picture = Image.fromarray(BYTES)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "mask.png", exif=exif)
    assert torch.equal(read_masks(tmp_path / "mask.png")[0], HARD.rot90(-1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SQUARE, [HARD]),
        (SQUARE.astype(np.uint8) * 2, [HARD]),
        (BYTES.astype(np.int64), [HARD]),
        (SQUARE.astype(">u2") * 65535, [HARD]),
        (SQUARE.astype(np.uint16) * 3, [HARD]),
        (SQUARE.astype(np.float16), [HARD]),
        (SQUARE.astype(">f8"), [HARD]),
        (SQUARE.astype(np.uint64) * 10**12, [HARD]),
        (LABELS.astype(np.int32), [[HARD], [torch.from_numpy(OTHER).float()]]),
        (np.stack([SQUARE, OTHER])[:, None] * 5, [[HARD], [torch.from_numpy(OTHER).float()]]),
        # Each object in its own number.
        (
            np.stack([SQUARE, OTHER])[:, None] * np.uint8([1, 2])[:, None, None, None],
            [[HARD], [torch.from_numpy(OTHER).float()]],
        ),
    ],
)
def test_arrays_of_any_number(tmp_path, values, expected):
    np.save(tmp_path / "mask.npy", values)
    found = read_masks(tmp_path / "mask.npy")
    expected = torch.stack([entry if isinstance(entry, torch.Tensor) else torch.stack(entry) for entry in expected])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((0, 8, 8), np.uint8), r"an empty array \[0, 8, 8\]"),
        (np.zeros((1, 2, 0, 8)), "an empty array"),
        (np.zeros((8, 8), np.longdouble), r"holds \w+ \[8, 8\]"),
        (np.zeros((8, 8), np.complex64), "holds complex64"),
        (np.array(["a"] * 64).reshape(8, 8), "holds <U1"),
        (np.ones((8, 16, 16, 1), np.uint8), "1 channels as it seems"),
        (np.ones((16, 16, 3)), "3 channels as it seems"),
        (np.zeros(8), r"\[8\]"),
        (-np.eye(8, dtype=np.int32), "holds -1"),
        (np.eye(8) * 2, "from 0 to 2; scale them"),
        (np.full((8, 8), np.nan, np.float16), "NaN or infinite"),
        (np.full((8, 8), 1e300), "NaN or infinite"),
        (np.arange(64, dtype=np.uint16).reshape(8, 8), "63 values from 1 to 63"),
        (np.arange(8 * 64, dtype=np.uint16).reshape(2, 4, 8, 8) % 3, "hold 2 values from 1 to 2"),
    ],
)
def test_arrays_that_are_no_masks(tmp_path, values, words):
    np.save(tmp_path / "mask.npy", values)
    with pytest.raises(ValueError, match=words):
        read_masks(tmp_path / "mask.npy")


def test_an_array_of_no_object_stays_one(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 5, 8, 8), np.uint8))
    assert read_masks(tmp_path / "none.npy").shape == (0, 5, 8, 8)


def test_several_arrays_in_a_file_are_refused(tmp_path):
    np.savez(tmp_path / "masks.npz", a=SQUARE)
    (tmp_path / "masks.npz").rename(tmp_path / "mask.npy")
    with pytest.raises(ValueError, match="several arrays"):
        read_masks(tmp_path / "mask.npy")


def encoded(path, codec, kind, pictures, given, **metadata):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height = stream.width = 64
        stream.pix_fmt = kind
        stream.metadata.update(metadata)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=given)))
        container.mux(stream.encode())


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("mask.mov", "prores_ks", "yuva444p10le"),
        ("mask.mov", "qtrle", "argb"),
        ("mask.mkv", "ffv1", "bgra"),
        ("mask.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_films_with_alpha(tmp_path, name, codec, kind, colour):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    large = BYTES.repeat(2, 0).repeat(2, 1)
    picture = np.dstack([np.full((64, 64, 3), colour, np.uint8), large])
    if kind == "argb":
        encoded(tmp_path / name, codec, kind, [np.roll(picture, 1, -1)] * 3, "argb")
    else:
        encoded(tmp_path / name, codec, kind, [picture] * 3, "rgba", alpha_mode="1")
    masks = read_masks(tmp_path / name)
    assert masks.shape == (3, 64, 64)
    assert torch.allclose(masks, torch.from_numpy(large).float().div(255).expand(3, -1, -1), atol=0.02)


def test_films_that_say_nothing_of_an_object(tmp_path):
    film = torch.from_numpy(BYTES).float().div(255)[None, ..., None].expand(2, -1, -1, 3)
    write_film(tmp_path / "dim.mp4", film * 0.3)
    with pytest.raises(ValueError, match="nowhere brighter than 7. of 255"):
        read_masks(tmp_path / "dim.mp4")
    write_film(tmp_path / "red.mp4", film * torch.tensor([0.9, 0.1, 0.1]))
    with pytest.raises(ValueError, match="is a picture in colour"):
        read_masks(tmp_path / "red.mp4")
    write_film(tmp_path / "black.mp4", film * 0.0)
    assert not read_masks(tmp_path / "black.mp4").any()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["mask.png", "indexed.png", "mask.npy", "mask.tif"])
def test_damaged_masks_are_read_or_refused(tmp_path, name):
    path = tmp_path / name
    if name == "mask.npy":
        np.save(path, BYTES)
    else:
        (indexed(LABELS, DAVIS) if name == "indexed.png" else Image.fromarray(BYTES)).save(path)
    whole = path.read_bytes()
    chance = np.random.default_rng(1)
    outcomes = set()
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 4:
            for place in chance.integers(0, min(len(whole), 150), 1 + trial % 5):
                damaged[place] = chance.integers(256)
        else:
            del damaged[chance.integers(len(whole)) :]
        path.write_bytes(damaged)
        try:
            outcomes.add(read_masks(path).ndim)
        except ValueError as error:
            outcomes.add("refused")
            assert name in str(error) and "\n" not in str(error)
    assert "refused" in outcomes
