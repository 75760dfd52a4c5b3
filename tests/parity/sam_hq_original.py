"""Transformers' SAM-HQ, loaded from an original file, against the original package: same random ViT-B weights.

    pip download --no-deps segment-anything-hq==0.3
    unzip segment_anything_hq-0.3-py3-none-any.whl -d /some/folder
    python tests/parity/sam_hq_original.py /some/folder

The package is not needed by the project and stays out of its environment (it imports timm, which must be there). Writes
a full-size file in the original layout to a temporary folder, opens it with ``perception.segmentation.sam_hq`` and with
the package, and asks both for masks from boxes, points, both, and rough masks. Logits, predicted IoU and embeddings
must agree within 1e-3; the exit status says whether they do. About 4 GB of memory, no GPU and no network; a minute or
two.
"""

from __future__ import annotations

import sys
import warnings

from sam_comparison import compare_packages


def main(folder: str) -> int:
    """Compare with the package in a folder."""
    sys.path.insert(0, folder)
    with warnings.catch_warnings():
        # The package registers encoders that timm has by now.
        warnings.simplefilter("ignore")
        from segment_anything_hq import SamPredictor, sam_model_registry

    return 0 if compare_packages(SamPredictor, sam_model_registry, "sam_hq") else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder that the package was unpacked into, see the docstring")
    sys.exit(main(sys.argv[1]))
