"""A crude film: the object of a film, cut out and pasted along another track, with what was behind it filled in.

Its edges and light are wrong on purpose: it tells a model where things are to be, not how they look (Time-to-Move,
arXiv 2511.08633).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...attention_patches.guidance.regions import FOREGROUND

# A word map above the first is taken for the object at first, below the second surely for background.
PROBABLE = 0.5
SURELY_NOT = 0.1
GRAB_CUT_ROUNDS = 3
# Radius of the inpainting of pixels that the object never leaves, in pixels.
INPAINT_RADIUS = 3.0


class ObjectNotFound(ValueError):
    """No frame of the first film shows an object that is to be moved."""


@dataclass(frozen=True, eq=False)
class CutOut:
    """An object as a small picture.

    Attributes:
        picture: [h, w, 3] in 0..1, its box.
        shape: [h, w] in 0..1, where in the box it is.
    """

    picture: Tensor
    shape: Tensor


def find_by_words(frames: Tensor, word_map: Tensor) -> Tensor:
    """Masks of an object where its words are seen, with the edges of what is in the picture there.

    Source: GrabCut (Rother et al. 2004) in OpenCV, begun from the map.

    Args:
        frames: [T, H, W, 3] in 0..1.
        word_map: [T, H, W] in 0..1, such as ``ShareRecord.word_map`` gives.

    Returns:
        float [T, H, W], 0 or 1; the map's own threshold in frames where nothing is told apart.

    Raises:
        ValueError: other sizes.
    """
    import cv2

    if frames.shape[:3] != word_map.shape:
        raise ValueError(
            f"frames are {tuple(frames.shape[:3])} and the word map {tuple(word_map.shape)}; make both alike."
        )
    found = []
    for picture, seen in zip(frames.cpu(), word_map.cpu().float(), strict=True):
        probable = seen > PROBABLE
        labels = np.where(seen.numpy() < SURELY_NOT, cv2.GC_BGD, cv2.GC_PR_BGD).astype(np.uint8)
        labels[probable.numpy()] = cv2.GC_PR_FGD
        if not bool(probable.any()) or bool((labels == cv2.GC_PR_FGD).all()):
            found.append(probable.float())
            continue
        colours = (picture.clamp(0.0, 1.0) * 255.0).round().byte().numpy()[..., ::-1].copy()
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(colours, labels, None, *models, GRAB_CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
        kept = torch.from_numpy((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
        kept = _best_piece(kept, seen)
        found.append((kept if bool(kept.any()) else probable).float())
    return torch.stack(found)


def cut_out(frames: Tensor, masks: Tensor) -> CutOut:
    """The object from the frame that shows most of it: the largest one whose box does not touch the picture's edge.

    Args:
        frames: [T, H, W, 3] in 0..1.
        masks: [T, H, W] in 0..1.

    Raises:
        ObjectNotFound: no mask holds anything.
    """
    inside = masks >= FOREGROUND
    height, width = masks.shape[1:]
    best, box = (-1, -1), (0, 0, 0, 0)
    chosen = 0
    for number, mask in enumerate(inside):
        if not bool(mask.any()):
            continue
        top, bottom, left, right = _box(mask)
        whole = top > 0 and left > 0 and bottom < height and right < width
        rank = (int(whole), int(mask.sum()))
        if rank > best:
            best, box, chosen = rank, (top, bottom, left, right), number
    if best[0] < 0:
        raise ObjectNotFound("the object was not found in any frame of the first film, so that it cannot be cut out.")
    top, bottom, left, right = box
    return CutOut(frames[chosen, top:bottom, left:right], masks[chosen, top:bottom, left:right].float())


def plate_behind(frames: Tensor, masks: Tensor) -> Tensor:
    """One picture [H, W, 3] of what is behind all objects: the median over the frames that show it, the rest inpainted.

    Args:
        frames: [T, H, W, 3] in 0..1.
        masks: [T, H, W] in 0..1, all objects together.
    """
    import cv2

    covered = _grown(masks >= FOREGROUND)
    shown = torch.where(covered[..., None], torch.nan, frames)
    plate = torch.nanmedian(shown, dim=0).values
    never = torch.isnan(plate[..., 0])
    if bool(never.all()):
        return frames.flatten(0, 2).mean(dim=0).expand(*frames.shape[1:]).clone()
    if bool(never.any()):
        known = plate[~never].mean(dim=0)
        bytes_ = (torch.where(never[..., None], known, plate).clamp(0, 1) * 255.0).round().byte().numpy()
        filled = cv2.inpaint(bytes_, never.byte().numpy(), INPAINT_RADIUS, cv2.INPAINT_TELEA)
        plate = torch.where(never[..., None], torch.from_numpy(filled).float() / 255.0, plate)
    return plate


def paste(film: Tensor, cut: CutOut, track: Tensor) -> Tensor:
    """Paste a cut-out into the box of a track in every frame, stretched to it; at the edge of the picture a part of it.

    Args:
        film: [T, H, W, 3] in 0..1.
        cut: the object.
        track: [T, H, W] in 0..1; frames without an object stay as they are.

    Returns:
        A new film.

    Raises:
        ValueError: other sizes.
    """
    if film.shape[:3] != track.shape:
        raise ValueError(f"the film is {tuple(film.shape[:3])} and the track {tuple(track.shape)}; make both alike.")
    film = film.clone()
    boxes = [_box(mask) if bool(mask.any()) else None for mask in track >= FOREGROUND]
    there = [box for box in boxes if box is not None]
    if not there:
        return film
    tallest, widest = max(box[1] - box[0] for box in there), max(box[3] - box[2] for box in there)
    for frame, box in zip(film, boxes, strict=True):
        if box is None:
            continue
        top, bottom, left, right = box
        first, rows = _uncut(top, bottom, film.shape[1], tallest)
        start, columns = _uncut(left, right, film.shape[2], widest)
        planes = torch.cat([cut.picture, cut.shape[..., None]], dim=-1).movedim(-1, 0)[None]
        resized = functional.interpolate(planes, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        shown = resized[0, :, top - first : bottom - first, left - start : right - start].movedim(0, -1)
        alpha = shown[..., 3:].clamp(0.0, 1.0)
        frame[top:bottom, left:right] = shown[..., :3] * alpha + frame[top:bottom, left:right] * (1.0 - alpha)
    return film


def crude_film(frames: Tensor, masks: Tensor, tracks: Tensor) -> Tensor:
    """Move the objects of a film to their tracks, later ones in front.

    Args:
        frames: first film [T, H, W, 3] in 0..1.
        masks: [R, T, H, W] in 0..1, where its objects are.
        tracks: [R, F, H, W] in 0..1, where they are to be; F frames are made.

    Returns:
        [F, H, W, 3] in 0..1.

    Raises:
        ValueError: other sizes.
        ObjectNotFound: an object that is to be somewhere and is nowhere in the first film.
    """
    plate = plate_behind(frames, masks.amax(dim=0))
    film = plate.expand(tracks.shape[1], *plate.shape).clone()
    for mask, track in zip(masks, tracks, strict=True):
        if bool((track >= FOREGROUND).any()):
            film = paste(film, cut_out(frames, mask), track)
    return film.clamp(0.0, 1.0)


def _uncut(first: int, last: int, size: int, longest: int) -> tuple[int, int]:
    """Begin and length of a box along one axis as if the picture did not end: cut boxes are as long as the longest."""
    if first == 0 and last < size and last - first < longest:
        return last - longest, longest
    if last == size and first > 0 and last - first < longest:
        return first, longest
    return first, last - first


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    """First row, last row + 1, first column, last column + 1 of a mask [H, W] that holds something."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _grown(masks: Tensor) -> Tensor:
    """Masks [T, H, W] one pixel larger on all sides: their edges are mixed with the object."""
    return functional.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0.5


def _best_piece(mask: Tensor, seen: Tensor) -> Tensor:
    """The connected piece of a mask [H, W] that has the most of a word map."""
    import cv2

    count, labels = cv2.connectedComponents(mask.byte().numpy())
    pieces = [torch.from_numpy(labels == number) for number in range(1, count)]
    return max(pieces, key=lambda piece: float(seen[piece].sum()), default=mask)
