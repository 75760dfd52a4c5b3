"""Transformers' SAM-HQ, loaded from an original file, against the original package: same random ViT-B weights.

    pip download --no-deps segment-anything-hq==0.3
    unzip segment_anything_hq-0.3-py3-none-any.whl -d /some/folder
    python tests/parity/sam_hq_original.py /some/folder

The package is not needed by the project and stays out of its environment (it imports timm, which must be there). Writes
a full-size file in the original layout to a temporary folder, opens it with ``perception.segmentation.sam_hq`` and with the package,
and asks both for masks from boxes, points, both, and rough masks. Logits, predicted IoU and embeddings must agree
within 1e-3; the exit status says whether they do. About 4 GB of memory, no GPU and no network; a minute or two.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from sam_comparison import compare, module, report, shake


def main(folder: str) -> int:
    """Build, load and compare."""
    import transformers

    sys.path.insert(0, folder)
    with warnings.catch_warnings():
        # The package registers encoders that timm has by now.
        warnings.simplefilter("ignore")
        from segment_anything_hq import SamPredictor, sam_model_registry

    report(f"torch {torch.__version__}, transformers {transformers.__version__}")
    torch.manual_seed(0)
    original = sam_model_registry["vit_b"]().eval()
    shake(original)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sam_hq_vit_b.pth"
        torch.save(original.state_dict(), path)
        segmenter = module("perception.segmentation.sam_hq").load_state(
            module("perception.loading").read_state(path), path
        )
    return 0 if compare(segmenter, SamPredictor(original)) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder that the package was unpacked into, see the docstring")
    sys.exit(main(sys.argv[1]))
