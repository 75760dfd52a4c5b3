"""SAM 3 (Carion et al., arXiv 2511.16719), from folders in the transformers layout.

Its tracker is driven like SAM 2's; its detector finds every object that a phrase names in one frame. Both look at the
same features of the picture, which are found once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..answers import check_answer
from ..frames import Film
from ..loading import check_model_folder, load_model_folder, load_processor, model_type_of
from ..prompts import ObjectPrompt
from .memory_propagation import MemoryModel
from .sam2 import video_classes, video_processor

WHOLE, TRACKER = "sam3_video", "sam3_tracker_video"
# Parts that see single pictures; they are named to say what is missing.
PARTS = {"sam3": "the detector", "sam3_tracker": "the tracker for single pictures"}
MODEL_TYPES = (WHOLE, TRACKER, *PARTS)

# Files of which one must be there to read text.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> MemoryModel:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json``, weights and, for the whole model, its tokenizer; the processor's files are used
            where they are there.
        dtype: of the weights in memory.

    Returns:
        The model; of the whole one (type ``sam3_video``) a :class:`TextMemoryModel`, which takes text.

    Raises:
        FileNotFoundError: when something is missing, the tokenizer too.
        ValueError: when the folder holds another kind of model, or a part of this one that cannot follow objects.
        RuntimeError: when a file cannot be read or does not fit.
        ImportError: when this version of transformers has no SAM 3.
    """
    video = video_classes("SAM 3", "5", "Sam3TrackerVideoModel", "Sam3TrackerVideoInferenceSession")
    check_model_folder(folder, *MODEL_TYPES)
    found = model_type_of(folder)
    if found in PARTS:
        raise ValueError(
            f"{folder} holds only {PARTS[found]} of SAM 3 (type {found!r}), which cannot follow objects; choose the "
            f"folder of the whole model (type {WHOLE!r})."
        )
    if found == TRACKER:
        model = load_model_folder(video[0], folder, TRACKER, dtype)
        return MemoryModel(model, model, video[1], _processor(folder, model))
    from transformers import AutoTokenizer, Sam3VideoModel

    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{folder} has no {' or '.join(TOKENIZER_FILES)}; copy the tokenizer of the model there too."
        )
    model = load_model_folder(Sam3VideoModel, folder, WHOLE, dtype)
    tokenizer = load_processor(AutoTokenizer, folder)
    return TextMemoryModel(model, video[1], _processor(folder, model.tracker_model), tokenizer)


def _processor(folder: str | Path, tracker: nn.Module) -> Any:
    return video_processor(folder, tracker.prompt_encoder.input_image_size, IMAGE_MEAN, IMAGE_STD)


@dataclass
class _Seen:
    """What was last found out about a video."""

    frame: int = -1
    vision: Any = None
    texts: dict[str, tuple[Tensor, Any]] = field(default_factory=dict)


class TextMemoryModel(MemoryModel):
    """SAM 3 with its detector: follows objects, and finds them by text.

    Args:
        model: transformers ``Sam3VideoModel``.
        session_class: the inference session of its tracker.
        processor: the video processor that prepares frames.
        tokenizer: for phrases.
    """

    takes_text = True

    def __init__(self, model: nn.Module, session_class: type, processor: Any, tokenizer: Any) -> None:
        super().__init__(model, model.tracker_model, session_class, processor)
        self.tokenizer = tokenizer
        # Freed with the video.
        self._seen: WeakKeyDictionary[Film, _Seen] = WeakKeyDictionary()

    @torch.no_grad()
    def encode(self, film: Film, frame: int) -> dict[str, Any]:
        """Features of a frame for the tracker, made from what the detector uses too."""
        features, positions = self.model.get_vision_features_for_tracker(self._look_at(film, frame))
        return {"vision_feats": features, "vision_pos_embeds": positions}

    @torch.no_grad()
    def find(self, film: Film, frame: int, phrases: Sequence[str]) -> list[ObjectPrompt]:
        """Every object in a frame that one of the phrases names.

        Args:
            film: video to look in.
            frame: of the video.
            phrases: what to look for, each by itself; cut to what the text encoder reads (32 tokens).

        Returns:
            Prompts with a mask at frame size, the phrase as label and a score, the best score first for each phrase.
            Objects of one phrase do not overlap; the same object may be found by several phrases.

        Raises:
            BrokenAnswerError: when the model answers with NaN.
        """
        found = []
        for phrase in phrases:
            tokens, text = self._read(film, phrase)
            output = self.model.detector_model(
                vision_embeds=self._look_at(film, frame), text_embeds=text, attention_mask=tokens
            )
            scores = (output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid())[0]
            logits = output.pred_masks[0].float()
            check_answer("segmenter", scores, logits)
            for number in self._distinct(scores, logits):
                mask = functional.interpolate(
                    logits[number][None, None], (film.height, film.width), mode="bilinear", align_corners=False
                )
                mask = (mask[0, 0] > 0).cpu()
                if mask.any():
                    found.append(ObjectPrompt(frame, mask=mask, label=phrase, score=float(scores[number])))
        return found

    def _distinct(self, scores: Tensor, logits: Tensor) -> list[int]:
        """Places of the answers that score high enough and overlap no better one, the best first.

        Args:
            scores: [Q], 0..1.
            logits: of the masks, [Q, h, w].
        """
        config = self.model.config
        confident = (scores > config.score_threshold_detection).nonzero().flatten()
        order = confident[scores[confident].argsort(descending=True)]
        masks = (logits[order] > 0).flatten(1).float()
        shared = masks @ masks.T
        areas = masks.sum(1)
        overlap = shared / (areas[:, None] + areas[None] - shared).clamp(min=1)
        kept: list[int] = []
        for place in range(len(order)):
            if all(overlap[place, other] <= config.det_nms_thresh for other in kept):
                kept.append(place)
        return order[kept].tolist()

    def _look_at(self, film: Film, frame: int) -> Any:
        """The detector's features of a frame; those of the latest frame are kept."""
        seen = self._seen.setdefault(film, _Seen())
        if seen.frame != frame or seen.vision.last_hidden_state.device != self.device:
            seen.vision = self.model.detector_model.get_vision_features(self.prepare(film, frame)[None])
            seen.frame = frame
        return seen.vision

    def _read(self, film: Film, phrase: str) -> tuple[Tensor, Any]:
        """A phrase as a mask of its tokens int [1, L] and features."""
        texts = self._seen.setdefault(film, _Seen()).texts
        if phrase not in texts or texts[phrase][0].device != self.device:
            detector = self.model.detector_model
            length = detector.config.text_config.max_position_embeddings
            tokens = self.tokenizer(
                phrase, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).to(self.device)
            text = detector.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            texts[phrase] = tokens["attention_mask"], text
        return texts[phrase]
