"""Videos as MP4 files, and the small picture arithmetic around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...weight_files.writing import replacing
from .colours import YuvMatrix, guessed_matrix, halved_chroma, planes_of
from .decoding import decoded_film, decoded_pictures, frame_rate

# Constant rate factor of H.264: next to nothing is lost to the eye.
FINE = 14
# Frames per second at least and at most.
RATES = (0.01, 1000.0)
# What the colours of pictures are, in the words of FFmpeg.
COLOURS = {"color_primaries": "bt709", "color_trc": "iec61966-2-1", "color_range": "tv"}


def check_frames(frames: Tensor, name: str = "frames") -> None:
    """Refuse what is not a video.

    Raises:
        ValueError: not [T, H, W, 3] with at least one frame and pixel, or not finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{name} have shape {tuple(frames.shape)}; give [frames, height, width, 3], none of them 0.")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError(f"{name} hold NaN or infinite values; the video is broken, sample it again.")


def to_bytes(frames: Tensor) -> Tensor:
    """Float frames in 0..1 to uint8, rounded; values outside are clamped."""
    return (frames.detach().cpu().float().clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8)


def enlarge(pictures: Tensor, factor: int) -> Tensor:
    """Repeat every pixel ``factor`` times along the axes 1 and 2: [T, H, W, ...] to [T, H * factor, W * factor, ...].

    Raises:
        ValueError: a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"the enlargement is {factor}; give a whole number of at least 1.")
    return pictures.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def shown_enlargement(height: int, width: int, target: int = 256) -> int:
    """By how much to enlarge a small video for viewing: 4 for 64 pixels, 1 from ``target`` pixels on."""
    return max(1, target // max(height, width))


def write_film(path: Path, frames: Tensor, frames_per_second: float = 8.0, enlargement: int = 1) -> None:
    """Write frames as a video; see :func:`write_pictures`.

    Args:
        path: of the file, ending in ``.mp4``.
        frames: float [T, H, W, 3], 0..1.
        frames_per_second: 0.01 to 1000.
        enlargement: repeat every pixel this often.

    Raises:
        ValueError: frames that are not a video, a rate or enlargement out of range, or a missing folder.
    """
    check_frames(frames)
    write_pictures(path, (enlarge(to_bytes(frame[None]), enlargement)[0] for frame in frames), frames_per_second)


def write_pictures(
    path: Path,
    pictures: Iterable[Tensor],
    frames_per_second: float = 8.0,
    crf: int = FINE,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an H.264 MP4 that every browser plays (MPEG-4 where the encoder is missing), one picture at a time.

    An odd height or width gains one repeated row or column, since the pixel format wants even sizes. The file names the
    matrix of its colours, and it is the one that players take for videos of its size that name none. The file appears
    under its name when it is complete.

    Args:
        path: of the file, ending in ``.mp4``.
        pictures: uint8 [H, W, 3] each, at least one, all of one size.
        frames_per_second: 0.01 to 1000.
        crf: constant rate factor, 0 (the largest file) to 51 (the smallest and worst).
        metadata: texts to keep in the file, by their names.

    Raises:
        ValueError: no picture, one of another size than the first, a rate or crf out of range, or a missing folder.
    """
    check_rate(frames_per_second)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; give a value from 0 (the largest file) to 51 (the smallest).")
    with replacing(path) as temporary:
        _encode(temporary, map(_even, pictures), _fraction(frames_per_second), crf, metadata or {})


def check_rate(frames_per_second: float, name: str = "frames_per_second") -> None:
    """Refuse a rate that videos are not written with.

    Raises:
        ValueError: out of range.
    """
    if not RATES[0] <= frames_per_second <= RATES[1]:
        raise ValueError(f"{name} is {frames_per_second:g}; give a value from {RATES[0]:g} to {RATES[1]:g}.")


def _fraction(rate: float) -> Fraction:
    """A rate as videos have it, such as 30000 / 1001."""
    if rate >= 1.0:
        return Fraction(rate).limit_denominator(1001)
    return 1 / Fraction(1.0 / rate).limit_denominator(1001)


def _even(picture: Tensor) -> Tensor:
    height, width = picture.shape[:2]
    if height % 2:
        picture = torch.cat([picture, picture[-1:]])
    if width % 2:
        picture = torch.cat([picture, picture[:, -1:]], dim=1)
    return picture


def _encode(path: Path, pictures: Iterable[Tensor], rate: Fraction, crf: int, metadata: Mapping[str, str]) -> None:
    import av

    # Without the second flag only a few names of metadata are kept.
    flags = {"movflags": "+faststart+use_metadata_tags" if metadata else "+faststart"}
    with av.open(str(path), mode="w", format="mp4", options=flags) as container:
        container.metadata.update(metadata)
        stream = None
        for picture in pictures:
            if stream is None:
                size, matrix = picture.shape, guessed_matrix(*picture.shape[:2])
                stream = _stream(container, rate, crf, matrix)
                stream.height, stream.width = size[:2]
            elif picture.shape != size:
                raise ValueError(
                    f"pictures of shapes {tuple(size)} and {tuple(picture.shape)} make no video; give one shape."
                )
            planes = halved_chroma(planes_of(picture, matrix))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        if stream is None:
            raise ValueError(f"there are no pictures for {path.name}; give at least one.")
        container.mux(stream.encode())


def _stream(container: Any, rate: Fraction, crf: int, matrix: YuvMatrix) -> Any:
    """A stream for pictures in this matrix, which the file will name."""
    import av

    h264 = "libx264" in av.codecs_available
    # The other encoder's scale has 1 for the finest and 31 for the coarsest.
    quality = {"crf": str(crf), "preset": "medium"} if h264 else {"q": str(1 + max(0, crf - 12) * 30 // 39)}
    options = quality | COLOURS | {"colorspace": matrix.name}
    stream = container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
    stream.pix_fmt = "yuv420p"
    # The same video gives the same file on any number of cores.
    stream.codec_context.thread_count = 1
    return stream


def read_film(path: Path) -> Tensor:
    """Read a video file (or GIF) as float frames [T, H, W, 3] in 0..1.

    Raises:
        ValueError: a missing file, no picture in it, or a file that cannot be decoded.
    """
    return read_film_bytes(path)[0].float() / 255.0


def read_film_bytes(path: Path) -> tuple[Tensor, float]:
    """Read a video file (or GIF) in a quarter of the memory: uint8 [T, H, W, 3], and its frames per second.

    Frames are turned as the file says (phones write videos that lie on their side), and have its colours.

    Raises:
        ValueError: a missing file, no picture in it, pictures of several sizes, or a file that cannot be decoded.
    """
    pictures: list[Any] = list(decoded_film(path))
    film = torch.empty(len(pictures), *pictures[0].shape, dtype=torch.uint8)
    for frame in range(len(pictures)):
        film[frame] = torch.from_numpy(pictures[frame])
        # Both copies together would be twice the video.
        pictures[frame] = None
    return film, frame_rate(path)


def read_picture(path: Path) -> Tensor:
    """Read a picture file, upright: float [H, W, 3] in 0..1.

    Raises:
        ValueError: a missing file, or one that is not a picture.
    """
    import numpy as np

    picture = decoded_pictures(path)[0]
    if picture.mode.startswith("I"):
        # Of 16 bits; the library's conversion to RGB cuts them off at 255.
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32)).clamp(0.0, 65535.0) / 65535.0
        return grey[..., None].repeat(1, 1, 3)
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).float() / 255.0
