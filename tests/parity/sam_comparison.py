"""What both SAM comparisons share: random weights in the original layout, and every kind of prompt asked of both sides.

No script of its own; see ``sam_segment_anything.py`` and ``sam_hq_original.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-3
# Its longer side is the models' own, so that neither side resizes the picture.
HEIGHT, WIDTH = 672, 1024

BOXES = torch.tensor([[100.0, 120.0, 400.0, 500.0], [600.5, 30.25, 1000.0, 650.0]])
POINTS = torch.tensor([[[200.0, 300.0], [800.0, 100.0]], [[700.0, 300.0], [50.0, 600.0]]])
LABELS = torch.tensor([[1, 0], [1, 0]])
# Name, and which of boxes, points and rough masks are given.
CASES = (
    ("boxes", {"boxes"}),
    ("one point each", {"point"}),
    ("points on and off", {"points"}),
    ("boxes and points", {"boxes", "points"}),
    ("boxes and rough masks", {"boxes", "guesses"}),
)


def module(name: str) -> ModuleType:
    """A module of this project, by its name inside the package."""
    if "bootstrap" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
        bootstrap = importlib.util.module_from_spec(spec)
        sys.modules["bootstrap"] = bootstrap
        spec.loader.exec_module(bootstrap)
    sys.modules["bootstrap"].import_package()
    return importlib.import_module(f"mask_guided_video.{name}")


def shake(model: nn.Module, seed: int = 0) -> None:
    """Give every weight that starts at zero or one some noise, so that none goes untested, and logits a usual size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            if "mlp" in name and name.startswith("mask_decoder.") and ".layers.2." in name and "lin" not in name:
                parameter.mul_(40)


def picture() -> np.ndarray:
    """A random smooth picture: uint8 [H, W, 3]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 12, 18, generator=generator)
    smooth = nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic", align_corners=False)
    return (smooth[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def compare(segmenter: Any, predictor: Any) -> bool:
    """Ask both sides for masks and write how far apart they are; whether all is within the tolerance.

    Args:
        segmenter: ours.
        predictor: the original package's, of the same weights.
    """
    frame = picture()
    started = time.perf_counter()
    encoded = segmenter.encode([frame])
    middle = time.perf_counter()
    predictor.set_image(frame)
    report(f"pictures encoded in {middle - started:.1f} s here, {time.perf_counter() - middle:.1f} s there")
    far = (encoded.embeddings - predictor.features).abs().max().item()
    report(f"embeddings: largest difference {far:.2e}, spread {predictor.features.std():.3f}")
    largest = far
    guesses = torch.randn(2, 1, 256, 256, generator=torch.Generator().manual_seed(2)) * 4
    for name, given in CASES:
        points = POINTS if "points" in given else POINTS[:, :1] if "point" in given else None
        labels = None if points is None else LABELS[:, : points.shape[1]]
        boxes = BOXES if "boxes" in given else None
        hints = guesses if "guesses" in given else None
        candidates = len(given) == 1 and "points" not in given
        logits, scores = segmenter.decode(encoded, boxes, points, labels, hints, candidates)
        _, theirs, low = predictor.predict_torch(points, labels, boxes, hints, candidates, return_logits=True)
        best = theirs.argmax(1)
        rows = torch.arange(len(best))
        far = (logits - low[rows, best]).abs().max().item()
        far_scores = (scores - theirs[rows, best]).abs().max().item()
        report(
            f"{name}: logits {far:.2e} (spread {low.std():.3f}), predicted IoU {far_scores:.2e}, "
            f"mask pixels that differ {whole_masks_differ(encoded, logits, predictor, low[rows, best])}"
        )
        largest = max(largest, far, far_scores)
    report(f"largest difference {largest:.2e}, allowed {TOLERANCE:.0e}: {'agree' if largest <= TOLERANCE else 'FAIL'}")
    return largest <= TOLERANCE


def compare_packages(predictor: type, registry: dict[str, Any], family: str) -> bool:
    """Build a package's ViT-B, write its weights as users have them, open them as ours and compare.

    Args:
        predictor: the package's ``SamPredictor``.
        registry: its builders of models.
        family: our module in perception/segmentation.
    """
    import transformers

    report(f"torch {torch.__version__}, transformers {transformers.__version__}")
    torch.manual_seed(0)
    original = registry["vit_b"]().eval()
    shake(original)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{family}_vit_b.pth"
        torch.save(original.state_dict(), path)
        state = module("weight_files.reading").read_state(path)
        segmenter = module(f"perception.segmentation.{family}").load_state(state, path)
    return compare(segmenter, predictor(original))


def whole_masks_differ(encoded: Any, logits: Tensor, predictor: Any, low: Tensor) -> int:
    """Pixels of masks at frame size whose inside and outside differ."""
    ours = encoded.fit.enlarge(logits) > 127
    theirs = predictor.model.postprocess_masks(low[:, None], (HEIGHT, WIDTH), (HEIGHT, WIDTH))[:, 0] > 0
    return int((ours != theirs).sum())


def report(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
