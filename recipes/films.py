"""Films as MP4 files, and the small picture arithmetic around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..weight_files.writing import replacing

# Constant rate factor of H.264: next to nothing is lost to the eye.
FINE = 14


def check_frames(frames: Tensor, name: str = "frames") -> None:
    """Refuse what is not a film.

    Raises:
        ValueError: not [T, H, W, 3] with at least one frame and pixel, or not finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{name} have shape {tuple(frames.shape)}; give [frames, height, width, 3], none of them 0.")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError(f"{name} hold NaN or infinite values; the film is broken, sample it again.")


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
    """How often to enlarge a small film for the eye: 4 for 64 pixels, 1 from ``target`` pixels on."""
    return max(1, target // max(height, width))


def write_film(path: Path, frames: Tensor, frames_per_second: float = 8.0, enlargement: int = 1) -> None:
    """Write frames as a film; see :func:`write_pictures`.

    Args:
        path: of the file, ending in ``.mp4``.
        frames: float [T, H, W, 3], 0..1.
        frames_per_second: above 0.
        enlargement: repeat every pixel this often.

    Raises:
        ValueError: frames that are no film, a rate or enlargement out of range, or a missing folder.
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

    An odd height or width gains one repeated row or column, since the pixel format wants even sizes. The file appears
    under its name when it is complete.

    Args:
        path: of the file, ending in ``.mp4``.
        pictures: uint8 [H, W, 3] each, at least one, all of one size.
        frames_per_second: above 0.
        crf: constant rate factor, 0 (the largest file) to 51 (the smallest and worst).
        metadata: texts to keep in the file, by their names.

    Raises:
        ValueError: no picture, one of another size than the first, a rate or crf out of range, or a missing folder.
    """
    if not 0.0 < frames_per_second <= 1000.0:
        raise ValueError(f"frames_per_second is {frames_per_second}; give a value above 0, up to 1000.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; give a value from 0 (the largest file) to 51 (the smallest).")
    with replacing(path) as temporary:
        rate = Fraction(frames_per_second).limit_denominator(1001)
        _encode(temporary, map(_even, pictures), rate, crf, metadata or {})


def _even(picture: Tensor) -> Tensor:
    height, width = picture.shape[:2]
    if height % 2:
        picture = torch.cat([picture, picture[-1:]])
    if width % 2:
        picture = torch.cat([picture, picture[:, -1:]], dim=1)
    return picture


def _encode(path: Path, pictures: Iterable[Tensor], rate: Fraction, crf: int, metadata: Mapping[str, str]) -> None:
    import av

    h264 = "libx264" in av.codecs_available
    # The other encoder's scale has 1 for the finest and 31 for the coarsest.
    options = {"crf": str(crf), "preset": "medium"} if h264 else {"q": str(1 + max(0, crf - 12) * 30 // 39)}
    # Without the second flag only a few names of metadata are kept.
    flags = {"movflags": "+faststart+use_metadata_tags" if metadata else "+faststart"}
    with av.open(str(path), mode="w", format="mp4", options=flags) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        # The same film gives the same file on any number of cores.
        stream.codec_context.thread_count = 1
        size = None
        for picture in pictures:
            if size is None:
                size = picture.shape
                stream.height, stream.width = size[:2]
            elif picture.shape != size:
                raise ValueError(f"pictures of shapes {tuple(size)} and {tuple(picture.shape)} make no film; give one.")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")))
        if size is None:
            raise ValueError(f"there are no pictures for {path.name}; give at least one.")
        container.mux(stream.encode())


def read_film(path: Path) -> Tensor:
    """Read a video file (or GIF) as float frames [T, H, W, 3] in 0..1.

    Raises:
        ValueError: no such file, no picture in it, or a file that cannot be decoded.
    """
    return read_film_bytes(path)[0].float() / 255.0


def read_film_bytes(path: Path) -> tuple[Tensor, float]:
    """Read a video file (or GIF) in a quarter of the memory: uint8 [T, H, W, 3], and its frames per second.

    Raises:
        ValueError: no such file, no picture in it, or a file that cannot be decoded.
    """
    import av

    if not path.is_file():
        raise ValueError(f"there is no film {str(path)!r}; check the path.")
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a film ({error}); give an MP4, WebM or GIF.") from error
    if not pictures:
        raise ValueError(f"{str(path)!r} holds no pictures; give a film with at least one frame.")
    film = torch.empty(len(pictures), *pictures[0].shape, dtype=torch.uint8)
    for frame in range(len(pictures)):
        film[frame] = torch.from_numpy(pictures[frame])
        # Both copies together would be twice the film.
        pictures[frame] = None
    return film, float(rate or 8.0)


def read_picture(path: Path, mode: Literal["RGB", "L"] = "RGB") -> Tensor:
    """Read a picture file: float [H, W, 3] in 0..1, or [H, W] of its brightness for the mode ``L``.

    Raises:
        ValueError: no such file, or one that is no picture.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise ValueError(f"there is no picture {str(path)!r}; check the path.")
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a picture ({error}); give a PNG.") from error
    return torch.from_numpy(values.copy()).float() / 255.0
