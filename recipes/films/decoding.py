"""Pictures out of files as a viewer shows them: upright, and in the colours that the file means."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .colours import guessed_matrix, matrix_of_tag, rgb_of

if TYPE_CHECKING:
    from PIL import Image

# Of videos; a picture in such a file is a video of one frame.
FILM_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif")
# H.273 names 2 for "not said".
UNSAID = 2
FULL_RANGE = 2
# By the pixels across and down that share a chroma.
SUBSAMPLED = {(2, 2): "420p", (2, 1): "422p"}
# Codecs whose alpha is a second video inside the packets, which only these decoders read.
LAYERED = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# What the readers of picture formats raise for bytes that are not a picture; an error of memory means a false size.
NO_PICTURE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError),
    *(OSError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


def decoded_film(path: Path, with_alpha: bool = False) -> Iterator[np.ndarray]:
    """The pictures of a video file (or GIF), one by one, turned as its container says.

    Args:
        path: of the file.
        with_alpha: keep the alpha of videos that have one.

    Yields:
        uint8 [H, W, 3], or [H, W, 4] of videos with alpha; all of one size.

    Raises:
        ValueError: a missing file, no picture in it, pictures of several sizes, a file that cannot be decoded, or alpha
            that this installation cannot read.
    """
    first = None
    with _opened(path) as container:
        stream = container.streams.video[0]
        for number, frame in enumerate(_frames(container, stream, path) if with_alpha else container.decode(stream)):
            picture = _upright(_pixels(frame, with_alpha), _turn(frame))
            if first is None:
                first = picture.shape
            elif picture.shape != first:
                raise ValueError(
                    f"frame {number} of {str(path)!r} is {_size(picture.shape)} pixels and its first {_size(first)}; "
                    "cut the video where its size changes, or bring it to one size."
                )
            yield picture
    if first is None:
        raise ValueError(f"{str(path)!r} holds no pictures; give a video with at least one frame.")


def frame_rate(path: Path) -> float:
    """Frames per second of a video file; 8 where it does not say.

    Raises:
        ValueError: as ``decoded_film``.
    """
    with _opened(path) as container:
        return float(container.streams.video[0].average_rate or 8.0)


def decoded_pictures(path: Path) -> list[Image.Image]:
    """A picture file, upright; of animated pictures and of files with several pages all of them.

    Raises:
        ValueError: a missing file, or one that is not a picture.
    """
    from PIL import Image, ImageOps, ImageSequence

    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give a file.")
    if not path.is_file():
        raise ValueError(f"there is no picture {str(path)!r}; check the path.")
    try:
        with Image.open(path) as picture:
            return [ImageOps.exif_transpose(page).copy() for page in ImageSequence.Iterator(picture)]
    except (*NO_PICTURE, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read as a picture ({reason}); give a PNG.") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The container of a file with a video in it."""
    import av

    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give a video file (make one from single pictures first).")
    if not path.is_file():
        raise ValueError(f"there is no video {str(path)!r}; check the path.")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(
                    f"{str(path)!r} cannot be read as a video (there are no pictures in it, only {_kinds(container)}); "
                    "give a video file."
                )
            yield container
    except (av.error.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)!r} cannot be read as a video ({reason}); give an MP4, WebM or GIF.") from error


def _kinds(container: Any) -> str:
    kinds = sorted({stream.type for stream in container.streams})
    return " and ".join("sound" if kind == "audio" else kind for kind in kinds) or "nothing"


def _frames(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """Decoded frames, with the alpha that some codecs keep apart."""
    import av

    # There is no codec context where the library does not know the codec.
    name = getattr(stream.codec_context, "name", None)
    metadata = {key.lower(): value for key, value in stream.metadata.items()}
    if metadata.get("alpha_mode") != "1" or name not in LAYERED:
        yield from container.decode(stream)
        return
    if LAYERED[name] not in av.codecs_available:
        raise ValueError(
            f"{str(path)!r} has alpha that only {LAYERED[name]} decodes, and this installation of PyAV lacks it; "
            "save the video as ProRes 4444, or as PNGs."
        )
    decoder = av.CodecContext.create(LAYERED[name], "r")
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _pixels(frame: Any, with_alpha: bool) -> np.ndarray:
    """RGB (or RGBA) of a decoded frame: uint8 [H, W, 3 or 4]."""
    kind = frame.format
    if with_alpha and any(component.is_alpha for component in kind.components):
        return frame.to_ndarray(format="rgba")
    tag = int(frame.colorspace)
    matrix = guessed_matrix(frame.height, frame.width) if tag in (UNSAID, 3) else matrix_of_tag(tag)
    if kind.is_rgb or len(kind.components) < 3 or kind.name.startswith(("pal", "xyz", "bayer")) or matrix is None:
        return frame.to_ndarray(format="rgb24")
    # The library's conversion to RGB rounds down, so that videos darken each time they are loaded and saved.
    full = kind.name.startswith("yuvj")
    return rgb_of(_planes(frame, "yuvj" if full else "yuv"), matrix, full or int(frame.color_range) == FULL_RANGE)


def _planes(frame: Any, kind: str) -> np.ndarray:
    """Luma and chroma of every pixel: uint8 [3, H, W].

    Each chroma is taken as it is for all of its pixels: between its neighbours' it would blur thin lines and enlarged
    pixels.
    """
    luma, chroma = frame.format.components[:2]
    shares = round(luma.width / chroma.width), round(luma.height / chroma.height)
    frame = frame.reformat(format=kind + SUBSAMPLED.get(shares, "444p"))
    planes = np.empty((3, frame.height, frame.width), np.uint8)
    for whole, part in zip(planes, frame.planes, strict=False):
        values = np.frombuffer(part, np.uint8).reshape(-1, part.line_size)[: part.height, : part.width]
        down, across = -(-frame.height // part.height), -(-frame.width // part.width)
        whole[:] = values.repeat(down, 0).repeat(across, 1)[: frame.height, : frame.width]
    return planes


def _turn(frame: Any) -> tuple[int, int, int, int]:
    """a, b, c, d of the matrix by which a frame is to be shown: a place (x, y) goes to (a x + c y, b x + d y)."""
    for side in frame.side_data:
        # Names and numbers of these kinds differ between versions of the library.
        if side.type.name == "DISPLAYMATRIX":
            values = struct.unpack("=9i", bytes(side)[:36])
            return values[0], values[1], values[3], values[4]
    return 1, 0, 0, 1


def _upright(picture: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """A picture as it is to be shown, by the nearest of the eight quarter turns and mirrorings."""
    a, b, c, d = turn
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        picture, across, down = picture.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    picture = picture[:, ::-1] if across < 0 else picture
    picture = picture[::-1] if down < 0 else picture
    return np.ascontiguousarray(picture)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
