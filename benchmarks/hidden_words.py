"""How much of a word is left in the video of LTX-2 when its rows of the text are hidden from attention.

    python benchmarks/hidden_words.py            # a table of shares, and benchmarks/results/hidden_words.json
    python benchmarks/hidden_words.py --quick    # one size, seconds, nothing is written

LTX-2 lets all rows of a text, learned registers among them, see each other in a connector before its blocks read them.
A word that attention guidance hides is therefore still in the other rows. Measured is the influence of a word: how far
the prediction of the video moves when the embedding of its token is exchanged for another one. The share that is left
is the influence with rows hidden in the video's cross-attention, in parts of the influence with none hidden. The last
column is the same with the logits of the word's own rows raised by log(20), about 3.

ComfyUI is found at COMFYUI_PATH or ~/comfy/ComfyUI. The models are its classes, small and with random weights, of
LTX-2.3's kind; as in the real one the connector adds to what the rows hold already, so that the share depends on how
much its layers add: ``gain`` scales the weights of the connector's attention. What trained weights do is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from shared import native_cases as cases
from shared.measuring import RESULTS, module

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, ROWS = 48, 1024
WORDS = (5, 6)
LATENTS = (1, 128, 3, 8, 8)
NETWORK = {
    **{"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 24, "cross_attention_dim": 96},
    **{"audio_num_attention_heads": 4, "audio_attention_head_dim": 12, "audio_cross_attention_dim": 48},
    **{"caption_channels": 96, "caption_proj_before_connector": True, "caption_projection_first_linear": False},
    **{"cross_attention_adaln": True, "apply_gated_attention": True, "connector_apply_gated_attention": True},
    **{"connector_num_attention_heads": 4, "connector_attention_head_dim": 24},
    **{"audio_connector_num_attention_heads": 4, "audio_connector_attention_head_dim": 12},
}
OTHERS = tuple(row for row in range(ROWS) if row not in WORDS)
# A key that stands there twenty times has its logit raised by log(20).
TIMES = 20
# Which rows of the text are keys.
KEYS = {
    "as it is": tuple(range(ROWS)),
    "word hidden": OTHERS,
    "word and registers hidden": tuple(row for row in OTHERS if row < TOKENS),
    "word raised": (*OTHERS, *WORDS * TIMES),
}


class ChosenRows:
    """An attention patch that chooses the rows of the text which are keys of cross-attention."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = torch.tensor(rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> ChosenRows:
        return self

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        """Attention among the chosen rows."""
        if site.kind != "cross":
            return attend(q, k, v, site)
        return attend(q, k[:, :, self.rows], v[:, :, self.rows], site)


def model_of(layers: int, gain: float, seed: int) -> Any:
    """A model whose connector has so many layers, with attention weights so much larger than those of linear maps."""
    import comfy.model_patcher
    import comfy.supported_models

    kind = comfy.supported_models.LTXAV
    config = kind({**kind.unet_config, **NETWORK, "connector_num_layers": layers})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.diffusion_model.named_parameters():
        size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        size *= gain if "connector" in name and "attn" in name else 1.0
        size = 1.0 if name.endswith("learnable_registers") else size
        parameter.requires_grad_(False)
        noise = torch.randn(parameter.shape, generator=generator) * size
        parameter.copy_(noise + 1.0 if "norm" in name and parameter.ndim == 1 else noise)
    return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def prediction(patcher: Any, text: Tensor, noise: Tensor) -> Tensor:
    """What the model makes of a text in one step from noise."""
    import comfy.sample

    condition = [[text, {"unprocessed_ltxav_embeds": True}]]
    return comfy.sample.sample(
        patcher, noise, 1, 1.0, "euler", "simple", condition, condition, torch.zeros_like(noise), disable_pbar=True
    )


def shares(layers: int, gain: float, seed: int) -> dict[str, float]:
    """A word's influence in parts of what it is with all rows, by the names of ``KEYS``."""
    install = module("backbones.registry").install_patches
    patcher, generator = model_of(layers, gain, seed), torch.Generator().manual_seed(100 + seed)
    text, noise = torch.randn(1, TOKENS, 144, generator=generator), torch.randn(LATENTS, generator=generator)
    other = text.clone()
    other[:, list(WORDS)] = torch.randn(1, len(WORDS), 144, generator=generator)
    moved = {}
    for name, rows in KEYS.items():
        chosen = install(patcher, [ChosenRows(rows)])
        moved[name] = float((prediction(chosen, other, noise) - prediction(chosen, text, noise)).norm())
    return {name: distance / moved["as it is"] for name, distance in moved.items() if name != "as it is"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of shares."""
    parser = argparse.ArgumentParser(description="How much of a hidden word is left in LTX-2.")
    parser.add_argument("--quick", action="store_true", help="one size and one seed")
    options = parser.parse_args(arguments)
    cases.import_comfyui("cpu")
    sizes = [(1, 1.0)] if options.quick else [(layers, gain) for layers in (1, 2, 4) for gain in (0.3, 1.0)]
    sys.stdout.write("layers  gain  " + "  ".join(name for name in KEYS if name != "as it is") + "\n")
    measured = []
    with torch.inference_mode():
        for layers, gain in sizes:
            found = [shares(layers, gain, seed) for seed in range(1 if options.quick else 3)]
            middle = [statistics.median(each[name] for each in found) for name in found[0]]
            sys.stdout.write(f"{layers:6d}  {gain:4.1f}  " + "  ".join(f"{value:.3f}" for value in middle) + "\n")
            measured.append({"layers": layers, "gain": gain, "shares": found})
    if not options.quick:
        text = json.dumps({"tokens": TOKENS, "words": WORDS, "measured": measured}, indent=1)
        (RESULTS / "hidden_words.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
