"""How much memory a helper model needs beside its weights, so that core can make room before it runs.

Figures are peaks of one picture through models of real size with random weights, measured with transformers 5 on a CPU,
in values (bytes over the size of one). Sizes are read from the weights, which are named alike in every format.
"""

from __future__ import annotations

from torch import Tensor, nn

# Detectors: values for each pixel of the prepared picture with a Swin backbone of width 96 (1.6 GB in fp32).
DETECTOR_VALUES = 400
DETECTOR_WIDTH = 96
SHORT_SIDE, LONG_SIDE = 800, 1333
# SAM: its encoder writes attention out, all pairs of tokens in all heads, this many times (1.8 GB in fp32 for ViT-B).
PAIR_COPIES = 2.3
# SAM 2 and its kind: values of one picture at width 96 (0.6 GB in fp32), and as many for the memory of earlier ones.
FILM_VALUES = 150_000_000
FILM_WIDTH = 96
# Of models of any other kind.
OTHER_VALUES = 500_000_000
# Masks at the video's size that are at work at once.
MASKS_AT_ONCE = 16


def working_memory(module: nn.Module, height: int, width: int) -> int:
    """Bytes that a helper model needs at once beside its weights, to see one picture.

    Args:
        module: the torch module.
        height, width: of the video.
    """
    weights = dict(module.named_parameters())
    # Small parts may be kept in full precision.
    size = max(weights.values(), key=Tensor.numel).element_size() if weights else 4
    config = getattr(module, "config", None)
    kind = str(getattr(config, "model_type", type(module).__name__)).lower().replace("_", "-")
    if "dino" in kind:
        scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
        channels = _channels(weights, DETECTOR_WIDTH)
        values = height * width * scale**2 * DETECTOR_VALUES * channels / DETECTOR_WIDTH
    elif kind in ("sam", "sam-hq", "samhq"):
        values = PAIR_COPIES * _pairs(weights)
    elif kind.startswith(("sam2", "edgetam")):
        values = 2 * FILM_VALUES * _channels(weights, FILM_WIDTH) / FILM_WIDTH
    else:
        values = OTHER_VALUES
    return int(values * size) + MASKS_AT_ONCE * height * width * 4


def _channels(weights: dict[str, Tensor], default: int) -> int:
    """Width of the first stage of a picture encoder."""
    found = [value.shape[0] for name, value in weights.items() if "patch_embed" in name and value.ndim == 4]
    return found[0] if found else default


def _pairs(weights: dict[str, Tensor]) -> int:
    """Pairs of tokens in all heads of SAM's picture encoder; ViT-H's, the largest, if the weights do not tell."""
    places = [value for name, value in weights.items() if name.endswith("pos_embed") and value.ndim == 4]
    relative = [value for name, value in weights.items() if name.endswith("rel_pos_h")]
    if not places or not relative:
        return 16 * 4096**2
    rows, columns, channels = places[0].shape[1:]
    return channels // relative[0].shape[-1] * (rows * columns) ** 2
