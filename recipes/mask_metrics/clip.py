"""How well a video fits its prompt, and its frames fit each other, by a CLIP model.

The measures of LAMP (Wu et al., arXiv 2310.10769, section 4.2): features of length 1, cosines times the model's
scale of logits, which is about 100.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...perception.answers import check_answer
from ...perception.boxes import Progress
from ...perception.frames import Film

# Pictures that the model looks at together.
CHUNK = 16


class ClipScorer:
    """Text alignment and frame consistency.

    Args:
        model: ``transformers.CLIPModel``; it works where its weights are.
        tokenizer: of its text half.
        processor: that makes its pictures.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @torch.no_grad()
    def score(self, film: Film, prompt: str, progress: Progress | None = None) -> dict[str, float | None]:
        """Judge a video.

        Args:
            film: video, read a few frames at a time.
            prompt: in words; longer than the model reads, it is cut. Empty: no text alignment.
            progress: called with (done, total) after every few frames; may raise to cancel.

        Returns:
            ``text_alignment``: mean over frames of scale * cos(frame, prompt), None without a prompt;
            ``frame_consistency``: mean over all pairs of frames of scale * cos, None for a single frame.
        """
        words = self._words(prompt)
        features: list[Tensor] = []
        text = None
        for start in range(0, len(film), CHUNK):
            numbers = range(start, min(start + CHUNK, len(film)))
            pictures = [film.picture(frame) for frame in numbers]
            # Said explicitly, because pictures of 1 or 3 rows look as if their channels came first.
            inputs = self.processor(pictures, input_data_format="channels_last", return_tensors="pt")
            answer = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype), **words)
            features.append(answer.image_embeds.float().cpu())
            text = answer.text_embeds.float().cpu()
            if progress is not None:
                progress(start + len(numbers), len(film))
        check_answer("CLIP model", *features, text)
        frames = torch.nn.functional.normalize(torch.cat(features), dim=-1)
        scale = float(self.model.logit_scale.detach().float().exp())
        alignment = scale * float((frames @ torch.nn.functional.normalize(text, dim=-1).T).mean())
        cosines = frames @ frames.T
        pairs = cosines[tuple(torch.triu_indices(len(frames), len(frames), offset=1))]
        return {
            "text_alignment": alignment if prompt.strip() else None,
            "frame_consistency": scale * float(pairs.mean()) if len(pairs) else None,
        }

    def _words(self, prompt: str) -> dict[str, Tensor]:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt")
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def load_clip(folder: str | Path, device: torch.device | None = None) -> ClipScorer:
    """Load a CLIP model with both halves.

    Args:
        folder: in the transformers layout: config.json, weights, preprocessor_config.json and the tokenizer's files.
        device: of the computation; None is the CPU.

    Raises:
        ValueError: the folder is missing or of another model, or does not hold a complete CLIP model.
    """
    from transformers import AutoConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} is not a folder of a CLIP model; give one with config.json and weights in it."
        )
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind != "clip":
            raise ValueError(f"it is a model of the kind {kind!r}")
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no CLIP model can be loaded from {str(folder)!r} ({' '.join(str(error).split())[:300]}); "
            "give a folder such as clip-vit-base-patch32 with weights, tokenizer and preprocessor_config.json."
        ) from error
    return ClipScorer(model.eval().to(device or "cpu"), tokenizer, processor)
