"""The original GroundingDINO package answers alike with transformers 4 and its own text wrapper, and with transformers
5 and ours.

Run it in two environments that share a folder; both need groundingdino-py, the second one any transformers::

    python4 tests/parity/groundingdino_transformers_versions.py write FOLDER
    python5 tests/parity/groundingdino_transformers_versions.py compare FOLDER

The first needs transformers before 5. It builds the full-size Swin-T model with random weights by nothing but the
package, writes them as a checkpoint in the original format (about 700 MB) and writes what the model answers. The second
opens the checkpoint as users do and fails when logits or boxes differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "groundingdino_swint_ogc.pth"
ANSWERS = "answers.pt"
CAPTIONS = ("red ball. blue square.", "a big dog? a cat.")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . ? a big red blue ball square dog cat ##s".split()
TOLERANCE = 1e-4


def original_module() -> Any:
    """Our module for this format."""
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("bootstrap").import_package() and importlib.import_module(
        "mask_guided_video.perception.detection.grounding_dino_original"
    )


def write_vocabulary(folder: Path) -> Path:
    """A vocabulary of BERT's kind for the words of the captions."""
    target = folder / "bert-base-uncased"
    target.mkdir(parents=True, exist_ok=True)
    (target / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return target


@torch.no_grad()
def answers_of(model: Any) -> list[dict[str, torch.Tensor]]:
    """What a model says to two noisy pictures and each caption."""
    pixels = torch.randn(2, 3, 320, 416, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [model(pixels, captions=[caption] * 2) for caption in CAPTIONS]
    return [{"logits": answer["pred_logits"], "boxes": answer["pred_boxes"]} for answer in answers]


def settings() -> SimpleNamespace:
    """Of Swin-T OGC, as the package's own file has them."""
    path = "groundingdino.config.GroundingDINO_SwinT_OGC"
    values = {name: value for name, value in vars(importlib.import_module(path)).items() if not name.startswith("_")}
    return SimpleNamespace(**values)


def write(folder: Path) -> str:
    """Build, answer and save with the package alone; only where it would go to the network it gets a tokenizer."""
    from transformers import BertConfig, BertModel, __version__

    if int(__version__.split(".")[0]) >= 5:
        raise SystemExit(f"transformers is {__version__}; write with a version before 5.")
    tokenizer = original_module().load_tokenizer(write_vocabulary(folder))
    torch.manual_seed(0)
    bert = BertModel(BertConfig())
    package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
    package.get_tokenlizer = SimpleNamespace(
        get_tokenlizer=lambda name: tokenizer, get_pretrained_language_model=lambda name: bert
    )
    model = package.build_groundingdino(settings()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # First weights leave text and picture apart; these let every part have a say.
            if name.endswith(("gamma_v", "gamma_l")):
                parameter.fill_(0.5)
            elif "bbox_embed" in name or "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state}, folder / CHECKPOINT)
    torch.save(answers_of(model), folder / ANSWERS)
    return f"transformers {__version__}, wrapper {type(model.bert).__name__}: written to {folder}"


def compare(folder: Path) -> str:
    """Open the checkpoint as users do, ask the same and compare."""
    from transformers import __version__

    original = original_module()
    reading = importlib.import_module("mask_guided_video.weight_files.reading")
    path = folder / CHECKPOINT
    state = reading.read_state(path)
    if not original.claims(state):
        raise SystemExit(f"{path} is not claimed as an original GroundingDINO.")
    model = original.load_state(state, path).model
    lines = [f"transformers {__version__}, wrapper {type(model.bert).__name__}"]
    worst = 0.0
    expected = torch.load(folder / ANSWERS, weights_only=True)
    for caption, wanted, found in zip(CAPTIONS, expected, answers_of(model), strict=True):
        for name in ("logits", "boxes"):
            seen = torch.isfinite(wanted[name])
            if not torch.equal(seen, torch.isfinite(found[name])):
                raise SystemExit(f"{name} of {caption!r}: other tokens are masked out.")
            difference = float((wanted[name][seen] - found[name][seen]).abs().max())
            spread = float(wanted[name][seen].std())
            lines.append(f"{caption!r} {name}: largest difference {difference:.3g}, standard deviation {spread:.3g}")
            worst = max(worst, difference)
    if worst > TOLERANCE:
        raise SystemExit("\n".join([*lines, f"more than {TOLERANCE}"]))
    return "\n".join(lines)


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write((write if options.what == "write" else compare)(options.folder) + "\n")


if __name__ == "__main__":
    main()
