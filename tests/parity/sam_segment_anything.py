"""Transformers' SAM, loaded from an original file, against the segment-anything package: same random ViT-B weights.

    python tests/parity/sam_segment_anything.py

Writes a full-size file in the original layout to a temporary folder, opens it with ``perception.segmentation.sam`` and
with the package, and asks both for masks from boxes, points, both, and rough masks. Logits, predicted IoU and
embeddings must agree within 1e-3; the exit status says whether they do. Needs segment-anything and transformers (any
version from 4.50), about 4 GB of memory, no GPU and no network; a minute or two.
"""

from __future__ import annotations

import sys

from sam_comparison import compare_packages
from segment_anything import SamPredictor, sam_model_registry

if __name__ == "__main__":
    sys.exit(0 if compare_packages(SamPredictor, sam_model_registry, "sam") else 1)
