"""Masks from boxes, points and rough masks in single pictures, by SAM (Kirillov et al., arXiv 2304.02643).

The model is transformers' ``SamModel``; weights may also come in the layout of the segment-anything package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..answers import check_answer
from ..frames import Film
from ..loading import load_model_folder
from ..mask_shapes import box_of_mask
from ..prompts import ObjectPrompt
from ..propagation import Sighting
from .sam_format import claims_sam, picture_processor, sam_of_state, sam_processor
from .sam_masks import PictureFit

MODEL_TYPES = ("sam",)

# Prompts that go through the mask decoder at once; each takes some 40 MB in models of the published size.
PROMPTS_PER_PASS = 16
# The attention of the picture encoder to the whole picture keeps two numbers for every pair of places in memory; as
# many pictures go through at once as need no more than this many bytes for them, and not more than the other number.
ATTENTION_BYTES = 1 << 30
PICTURES_PER_PASS = 8


@dataclass(frozen=True)
class EncodedPictures:
    """What the picture encoder found in some frames, wherever the model was.

    Attributes:
        embeddings: [t, C, h, w].
        details: [t, C', grid, grid], fine features for models that use them.
        fit: how the frames lie in the model's input.
    """

    embeddings: Tensor
    details: Tensor | None
    fit: PictureFit

    def take(self, place: int) -> EncodedPictures:
        """One of the frames."""
        details = None if self.details is None else self.details[place : place + 1]
        return EncodedPictures(self.embeddings[place : place + 1], details, self.fit)


class SamSegmenter:
    """SAM as the tracker uses it.

    Args:
        model: transformers ``SamModel``. It may be moved between calls; every call runs where its parameters are.
        processor: prepares pictures, the matching ``SamProcessor`` or its image processor.
        batch_size: frames per pass of the picture encoder, at least 1; None chooses by the size of the model.
    """

    def __init__(self, model: nn.Module, processor: Any, batch_size: int | None = None) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size or pictures_per_pass(model)

    def open(self, film: Film) -> SamFilm:
        """Open a video; pictures are encoded when they are first needed."""
        return SamFilm(self, film)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Any]) -> EncodedPictures:
        """Run the picture encoder.

        Args:
            pictures: uint8 arrays [H, W, 3] of one size.
        """
        # One at a time: preparing takes many times the memory of the picture. The format is said because pictures a few
        # pixels high are taken for channels otherwise.
        inputs = [
            self.processor(images=picture, input_data_format="channels_last", return_tensors="pt")
            for picture in pictures
        ]
        parameter = next(self.model.vision_encoder.parameters())
        pixels = torch.cat([prepared["pixel_values"] for prepared in inputs]).to(parameter.device, parameter.dtype)
        original, reshaped = (
            tuple(int(side) for side in inputs[0][name][0]) for name in ("original_sizes", "reshaped_input_sizes")
        )
        config = self.model.config.vision_config
        # The decoder's grid is four times finer than the encoder's.
        grid = config.image_size // config.patch_size * 4
        return EncodedPictures(*self._look(pixels), PictureFit(original, reshaped, config.image_size, grid))

    @torch.no_grad()
    def decode(
        self,
        picture: EncodedPictures,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        guesses: Tensor | None = None,
        candidates: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run the mask decoder for N prompts of one kind.

        Args:
            picture: one encoded frame.
            boxes: corners float [N, 4] in model pixels.
            points: float [N, P, 2] in model pixels.
            labels: int [N, P], 1 on the object and 0 off it.
            guesses: float [N, 1, grid, grid], logits.
            candidates: make three masks and take the one with the best predicted IoU; False makes one.

        Returns:
            Logits float [N, grid, grid] and predicted IoU float [N], on the model's device.

        Raises:
            BrokenAnswerError: when the model answers with NaN.
        """
        parameter = next(self.model.mask_decoder.parameters())

        def placed(values: Tensor | None) -> Tensor | None:
            """On the device, with prompts in the second place, or in the first where each has its own picture."""
            return None if values is None else values.to(parameter.device).unsqueeze(0 if guesses is None else 1)

        masks, scores = self._predict(
            EncodedPictures(
                picture.embeddings.to(parameter.device, parameter.dtype),
                None if picture.details is None else picture.details.to(parameter.device, parameter.dtype),
                picture.fit,
            ),
            {
                # Coordinates stay in full precision: half precision knows 1000 pixels only to within four.
                "input_boxes": placed(boxes),
                "input_points": placed(points),
                "input_labels": placed(labels),
                "input_masks": None if guesses is None else guesses.to(parameter.device, parameter.dtype),
            },
            candidates,
        )
        check_answer("segmenter", masks, scores)
        best = scores.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        return masks[rows, best].float(), scores[rows, best].float()

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings and further features of prepared pictures."""
        return self.model.get_image_embeddings(pixels), None

    def _predict(
        self, picture: EncodedPictures, prompts: dict[str, Tensor | None], candidates: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, M, grid, grid] and predicted IoU [N, M] of M = 3 candidates, or of one."""
        hints = prompts["input_masks"]
        outputs = self.model(
            image_embeddings=picture.embeddings.expand(1 if hints is None else len(hints), -1, -1, -1),
            multimask_output=candidates,
            **{name: value for name, value in prompts.items() if value is not None},
        )
        return outputs.pred_masks.flatten(0, 1), outputs.iou_scores.flatten(0, 1)


class SamFilm:
    """A video as SAM encodes it; see :class:`~.propagation.SegmentedFilm`.

    Frames are encoded a few at once, in the step and direction in which they were last needed.
    """

    def __init__(self, segmenter: SamSegmenter, film: Film) -> None:
        self.segmenter, self.film = segmenter, film
        self._places: dict[int, int] = {}
        self._encoded: EncodedPictures | None = None
        self._latest: int | None = None

    def segment(
        self, frame: int, prompts: Sequence[ObjectPrompt], guesses: Sequence[Tensor | None] = ()
    ) -> list[Sighting]:
        """Masks of prompted objects in one frame, one a prompt.

        Args:
            frame: to look at.
            prompts: in pixels of the video; box, points and mask of one prompt are used together. A mask without box
                and points on the object is also given as its box, since SAM cannot do with a mask alone.
            guesses: per prompt a rough mask, float [H, W] 0..1, or None; a prompt's own mask goes before it.

        Raises:
            ValueError: when there is another number of guesses than prompts, or one is of another size.
        """
        if guesses and len(guesses) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(guesses)} guesses; give one each, or none.")
        if not prompts:
            return []
        picture = self._picture(frame)
        hints = [
            _Hint.of(prompt, guess, picture.fit)
            for prompt, guess in zip(prompts, guesses or [None] * len(prompts), strict=True)
        ]
        # What stays when a prompt says nothing: an empty mask and no box or point.
        nothing = Sighting(torch.zeros(picture.fit.original, dtype=torch.uint8), 0.0)
        sightings = [nothing] * len(hints)
        for kind in dict.fromkeys(hint.kind for hint in hints if hint.box or hint.points):
            alike = [number for number, hint in enumerate(hints) if hint.kind == kind]
            for start in range(0, len(alike), PROMPTS_PER_PASS):
                part = alike[start : start + PROMPTS_PER_PASS]
                for number, sighting in zip(part, self._ask(picture, [hints[index] for index in part]), strict=True):
                    sightings[number] = sighting
        return sightings

    def _ask(self, picture: EncodedPictures, hints: Sequence[_Hint]) -> list[Sighting]:
        """Masks for hints of one kind."""
        first = hints[0]
        logits, scores = self.segmenter.decode(
            picture,
            boxes=None if first.box is None else torch.tensor([hint.box for hint in hints]),
            points=torch.tensor([hint.points for hint in hints]) if first.points else None,
            labels=torch.tensor([hint.labels for hint in hints]) if first.points else None,
            guesses=None if first.guess is None else picture.fit.shrink([hint.guess for hint in hints]),
            candidates=first.ambiguous,
        )
        masks = picture.fit.enlarge(logits)
        seen = (masks > 127).flatten(1).any(1).tolist()
        return [
            Sighting(mask, min(max(score, 0.0), 1.0) if visible else 0.0)
            for mask, score, visible in zip(masks, scores.tolist(), seen, strict=True)
        ]

    def _picture(self, frame: int) -> EncodedPictures:
        """One frame, encoded; with it those that will be needed next."""
        if frame not in self._places:
            step = 1 if self._latest is None else frame - self._latest
            coming = range(frame, len(self.film) if step > 0 else -1, step)[: self.segmenter.batch_size]
            # What was kept goes before what is new comes.
            self._places, self._encoded = {}, None
            self._encoded = self.segmenter.encode([self.film.picture(index) for index in coming])
            self._places = {index: place for place, index in enumerate(coming)}
        self._latest = frame
        return self._encoded.take(self._places[frame])


@dataclass(frozen=True, eq=False)
class _Hint:
    """A prompt in model pixels."""

    box: tuple[float, ...] | None
    points: list[tuple[float, float]]
    labels: list[int]
    guess: Tensor | None

    @classmethod
    def of(cls, prompt: ObjectPrompt, guess: Tensor | None, fit: PictureFit) -> _Hint:
        x_scale, y_scale = fit.scale
        mask = guess if prompt.mask is None else prompt.mask
        box = prompt.box
        if box is None and not any(point.inside for point in prompt.points):
            box = box_of_mask(mask)
        return cls(
            None if box is None else box.scaled(x_scale, y_scale).corners,
            [(point.x * x_scale, point.y * y_scale) for point in prompt.points],
            [int(point.inside) for point in prompt.points],
            mask,
        )

    @property
    def kind(self) -> tuple[bool, int, bool]:
        """Hints that agree in this can go through the decoder together."""
        return self.box is None, len(self.points), self.guess is None

    @property
    def ambiguous(self) -> bool:
        """Whether a box or a point stands alone.

        SAM was trained to answer those with three masks, and anything more with a separate one (paper, appendix A). On
        the Toybox, where nothing is ambiguous, one mask is better by 0.002 IoU for every kind of prompt.
        """
        return self.guess is None and len(self.points) + (self.box is not None) == 1


def pictures_per_pass(model: nn.Module) -> int:
    """How many pictures a model's picture encoder takes at once without needing much memory."""
    config = model.config.vision_config
    places = (config.image_size // config.patch_size) ** 2
    itemsize = next(model.vision_encoder.parameters()).element_size()
    per_picture = 2 * config.num_attention_heads * places**2 * itemsize
    return min(max(ATTENTION_BYTES // per_picture, 1), PICTURES_PER_PASS)


def claims(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a SAM, in the original or the transformers layout."""
    return claims_sam(state)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> SamSegmenter:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json``, weights and, if it is not the usual one, the preparation of pictures.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when a file is broken.
    """
    from transformers import SamModel

    model = load_model_folder(SamModel, folder, MODEL_TYPES, torch.float32)
    model.vision_encoder.to(dtype)
    return SamSegmenter(model, picture_processor(folder, model.config.vision_config.image_size))


def load_state(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> SamSegmenter:
    """Build a SAM of any size from the weights of one file.

    Args:
        state: in the original or the transformers layout.
        path: that it came from, for errors.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        ValueError: when the weights are of another kind of model.
        RuntimeError: when tensors are missing, left over or of a wrong shape.
    """
    model = sam_of_state(state, path, dtype)
    return SamSegmenter(model, sam_processor(model.config.vision_config.image_size))
