"""Transformers' SAM, loaded from an original file, against the segment-anything package: same random ViT-B weights.

    python tests/parity/sam_segment_anything.py

Writes a full-size file in the original layout to a temporary folder, opens it with ``perception.segmentation.sam`` and with the
package, and asks both for masks from boxes, points, both, and rough masks. Logits, predicted IoU and embeddings must
agree within 1e-3; the exit status says whether they do. Needs segment-anything and transformers (any version from
4.50), about 4 GB of memory, no GPU and no network; a minute or two.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from sam_comparison import compare, module, report, shake
from segment_anything import SamPredictor, sam_model_registry


def main() -> int:
    """Build, load and compare."""
    import transformers

    report(f"torch {torch.__version__}, transformers {transformers.__version__}")
    torch.manual_seed(0)
    original = sam_model_registry["vit_b"]().eval()
    shake(original)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sam_vit_b.pth"
        torch.save(original.state_dict(), path)
        segmenter = module("perception.segmentation.sam").load_state(
            module("perception.loading").read_state(path), path
        )
    return 0 if compare(segmenter, SamPredictor(original)) else 1


if __name__ == "__main__":
    sys.exit(main())
