"""Clips and masks for motion tuning: found in folders, resized, encoded once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...attention_patches.checks import check_shape
from ...perception.phrases import bind_phrases, read_phrases
from ...recipes.films.decoding import FILM_SUFFIXES
from ...recipes.films.files import read_film
from ...recipes.given.mask_names import names_path, read_names
from ...recipes.given.masks import MASK_SUFFIXES, read_masks
from ...weight_files.writing import write_tensors
from .settings import MotionSettings

logger = logging.getLogger(__name__)

# Fewer clips than this show what is in them, not how it moves.
LEAST_CLIPS = 2
# Begins the line of a clip's text file that names its background.
BACKGROUND_MARK = "background:"


class ClipEncoder(Protocol):
    """The part of a video model that the data needs; see ``recipes.protocols.VideoModel``."""

    @property
    def geometry(self) -> Any:
        """Sizes."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [T, H, W, 3] to latents [1, C, T, h, w]."""


@dataclass(frozen=True)
class ClipWords:
    """The words of a clip.

    Attributes:
        prompt: of the clip.
        phrases: words of it that name the objects in the masks, one per object.
        background: words of it that name the background; may be empty.
    """

    prompt: str
    phrases: tuple[str, ...] = ()
    background: str = ""


@dataclass(frozen=True)
class ClipFiles:
    """Where one training clip comes from.

    Attributes:
        name: of the clip.
        film: a video file, or a folder of pictures.
        masks: see ``recipes.given_masks.read_masks``; None where tuning goes without masks.
        words: of this clip.
    """

    name: str
    film: Path
    masks: Path | None
    words: ClipWords


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """One clip as the loop takes it.

    Attributes:
        words: of this clip.
        latents: [2, C, T, h, w] as the U-Net sees them, as recorded and mirrored.
        masks: uint8 [N, T, H, W], 255 the object, as recorded; None without masks.
    """

    words: ClipWords
    latents: Tensor
    masks: Tensor | None


def find_clips(videos: Path, masks: Path | None, settings: MotionSettings) -> list[ClipFiles]:
    """Pair the videos of a folder with the masks of another by their names.

    A text file beside a video (``horse.txt`` for ``horse.mp4``) has its prompt in the first line and the phrases of its
    objects in further ones; a line ``background: on the beach`` names its background. Without one the settings' words
    are taken.

    Args:
        videos: folder of videos.
        masks: folder with ``<name>`` of any kind that ``read_masks`` reads; None for none.
        settings: words of clips that bring none.

    Raises:
        ValueError: a folder that is missing, fewer clips than ``LEAST_CLIPS``, videos and masks that do not pair, or a
            clip without a prompt, or with masks but without a phrase.
    """
    films = _by_name(videos, "videos", lambda path: path.suffix.lower() in FILM_SUFFIXES)
    if len(films) < LEAST_CLIPS:
        raise ValueError(
            f"{str(videos)!r} holds {len(films)} video{'' if len(films) == 1 else 's'} ({', '.join(FILM_SUFFIXES)}), "
            "too few to tell motion from the rest of the picture; put "
            f"{LEAST_CLIPS} or more there, 8 to 16 are usual."
        )
    found: dict[str, Path] = {}
    if masks is not None:
        found = _by_name(masks, "masks", lambda path: path.is_dir() or path.suffix.lower() in MASK_SUFFIXES)
        odd = sorted(set(films) ^ set(found))
        if odd:
            raise ValueError(
                f"there are {len(films)} videos and {len(found)} masks, and these lack a partner of their name: "
                f"{', '.join(odd)}; give each video masks of the same name (horse.mp4 and horse.npy)."
            )
    clips = []
    for name, film in sorted(films.items()):
        words = _words(film, settings)
        if not words.prompt:
            raise ValueError(
                f"the clip {name!r} has no prompt; give one for all, or write it into {name}.txt beside it."
            )
        if masks is not None and not words.phrases:
            # Objects of one name are one region.
            words = replace(words, phrases=read_phrases(list(filter(None, read_names(found[name])))))
        if masks is not None and not words.phrases:
            raise ValueError(
                f"the clip {name!r} has masks but no phrase that names the object in its prompt; give one for all, or "
                f"write it into the second line of {name}.txt."
            )
        clips.append(ClipFiles(name, film, found.get(name), words))
    return clips


def load_clips(
    files: Sequence[ClipFiles],
    encoder: ClipEncoder,
    settings: MotionSettings,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TrainingClip]:
    """Read, fit and encode clips, or take them from the cache where nothing changed.

    Args:
        files: of the clips.
        encoder: makes the latents.
        settings: sizes and stride.
        cache: file of the encoded clips; None keeps none.
        progress: called with (done, total) after each clip; may raise to cancel.

    Raises:
        ValueError: a video or mask that cannot be read, is too short, or whose numbers of frames or objects differ.
    """
    key = _cache_key(files, encoder, settings)
    kept = _read_cache(cache, key)
    if kept is None:
        kept = {}
        for number, clip in enumerate(files):
            latents, masks = _encoded(clip, encoder, settings)
            kept[f"{number}.latents"] = latents
            if masks is not None:
                kept[f"{number}.masks"] = masks
            if progress is not None:
                progress(number + 1, len(files))
        _write_cache(cache, kept, key)
    for number, clip in enumerate(files):
        _report_empty(clip, kept.get(f"{number}.masks"))
    return [
        TrainingClip(clip.words, kept[f"{number}.latents"], kept.get(f"{number}.masks"))
        for number, clip in enumerate(files)
    ]


def clip_sizes(settings: MotionSettings, geometry: Any) -> tuple[int, int, int]:
    """Frames, height and width of training clips: those of the settings, else the model's native ones.

    Raises:
        ValueError: sizes that the model's VAE cannot make, or a VAE that compresses time.
    """
    if geometry.temporal_factor != 1:
        raise ValueError(
            f"this model's VAE makes one latent frame of {geometry.temporal_factor} frames; motion tuning works on "
            "models with a latent frame for every frame (Toybox, LaVie)."
        )
    sizes = (
        settings.frames or geometry.native_frames,
        settings.height or geometry.height,
        settings.width or geometry.width,
    )
    for name, value in (("height", sizes[1]), ("width", sizes[2])):
        if value % geometry.spatial_factor:
            raise ValueError(f"{name} is {value}; it must be a multiple of {geometry.spatial_factor} for this model.")
    return sizes


def fitted(pictures: Tensor, height: int, width: int) -> Tensor:
    """Cut pictures [T, C, H, W] to a shape around their middle and resize them: [T, C, height, width]."""
    rows, columns = pictures.shape[-2:]
    if (rows, columns) == (height, width):
        return pictures
    scale = max(height / rows, width / columns)
    size = max(height, round(rows * scale)), max(width, round(columns * scale))
    larger = interpolate(pictures, size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return larger[..., top : top + height, left : left + width]


def _by_name(folder: Path, what: str, is_wanted: Callable[[Path], bool]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r} of {what}; check the path.")
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_wanted(path)]
    named = {path.stem if path.is_file() else path.name: path for path in paths}
    if len(named) < len(paths):
        raise ValueError(f"{str(folder)!r} holds {len(paths)} {what} under {len(named)} names; rename some.")
    return named


def _words(film: Path, settings: MotionSettings) -> ClipWords:
    common = ClipWords(settings.prompt.strip(), read_phrases(settings.phrases), settings.background_phrase.strip())
    written = film.with_suffix(".txt")
    if not written.is_file():
        return common
    try:
        lines = [line.strip() for line in written.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(written)!r} is not text ({error.reason}); save it as UTF-8.") from error
    named = [line[len(BACKGROUND_MARK) :].strip() for line in lines if line.lower().startswith(BACKGROUND_MARK)]
    others = [line for line in lines if not line.lower().startswith(BACKGROUND_MARK)]
    if not others:
        return common
    return ClipWords(others[0], read_phrases(others[1:]) or common.phrases, named[0] if named else common.background)


def _encoded(clip: ClipFiles, encoder: ClipEncoder, settings: MotionSettings) -> tuple[Tensor, Tensor | None]:
    """Latents [2, C, T, h, w] and masks uint8 [N, T, H, W] of one clip."""
    frames, height, width = clip_sizes(settings, encoder.geometry)
    film = read_film(clip.film)[:: settings.stride]
    if len(film) < frames:
        raise ValueError(
            f"the clip {clip.name!r} has {len(film)} frames at stride {settings.stride} and training takes {frames}; "
            "give a longer video, fewer frames or a smaller stride."
        )
    pictures = fitted(film.movedim(-1, 1), height, width).movedim(1, -1)
    with torch.no_grad():
        latents = torch.cat([encoder.encode(pictures), encoder.encode(pictures.flip(2))]).float().cpu().clone()
    if clip.masks is None:
        return latents, None
    masks = read_masks(clip.masks)
    masks = (masks[None] if masks.ndim == 3 else masks)[:, :: settings.stride]
    if masks.shape[1] == 1:
        masks = masks.expand(-1, len(film), -1, -1)
    if masks.shape[1] != len(film):
        raise ValueError(
            f"the clip {clip.name!r} has {len(film)} frames and {masks.shape[1]} masks at stride {settings.stride}; "
            "give one mask per frame, or a single one."
        )
    check_shape(f"the masks of the clip {clip.name!r} are", masks.shape[2:], film.shape[1:3])
    masks = _of_phrases(clip, masks)
    small = fitted(masks.flatten(0, 1)[:, None].float(), height, width)
    return latents, (small.clamp(0, 1) * 255).round().to(torch.uint8)[:, 0].unflatten(0, masks.shape[:2]).contiguous()


def _of_phrases(clip: ClipFiles, masks: Tensor) -> Tensor:
    """Masks [N, T, H, W], one per phrase: all objects of a phrase together."""
    phrases, names = clip.words.phrases, read_names(clip.masks, len(masks))
    if not any(names) and len(masks) != len(phrases):
        raise ValueError(
            f"the clip {clip.name!r} has masks of {len(masks)} objects and {len(phrases)} phrases; give one per object."
        )
    groups = bind_phrases(phrases, names, f"masks of the clip {clip.name!r}")
    return torch.stack([masks[group].amax(0) for group in groups])


def _report_empty(clip: ClipFiles, masks: Tensor | None) -> None:
    """Warn of objects of a clip without a mask in any frame: nothing is learned of where they are."""
    if masks is not None:
        empty = [repr(phrase) for phrase, film in zip(clip.words.phrases, masks, strict=True) if int(film.max()) < 128]
        if empty:
            logger.warning("the masks of the clip %r are empty in all frames for %s.", clip.name, ", ".join(empty))


def _cache_key(files: Sequence[ClipFiles], encoder: ClipEncoder, settings: MotionSettings) -> str:
    """What the encoded clips depend on: files with their sizes and times, the sizes of the clips, the VAE."""
    entries: list[Any] = [clip_sizes(settings, encoder.geometry), settings.stride]
    for clip in files:
        for path in (clip.film, clip.masks):
            parts = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
            entries.append([[str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns] for part in parts])
        names = None if clip.masks is None else names_path(clip.masks)
        written = names.read_text(encoding="utf-8") if names is not None and names.is_file() else ""
        entries.append([clip.words.prompt, list(clip.words.phrases), written])
    # A picture of noise tells one VAE from another.
    size = encoder.geometry.spatial_factor * 2
    probe = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        entries.append([round(float(value), 4) for value in encoder.encode(probe).flatten()])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _read_cache(path: Path | None, key: str) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        logger.warning("%s cannot be read; the clips are encoded again.", path)
        return None


def _write_cache(path: Path | None, tensors: dict[str, Tensor], key: str) -> None:
    if path is None:
        return
    try:
        write_tensors(path, tensors, {"key": key})
    except OSError as error:
        # Only kept to save time: another run encodes the clips again.
        logger.warning("the encoded clips are not kept: %s", error)
