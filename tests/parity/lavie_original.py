"""LaVie's own U-Nets and ours answer alike on the same random weights: base model, interpolation model and upscaler.

Needs a clone of github.com/Vchitect/LaVie and the package that its attention over time uses, beside ours::

    pip install rotary-embedding-torch==0.3.6
    python tests/parity/lavie_original.py path/to/LaVie
    python tests/parity/lavie_original.py path/to/LaVie --stages upscaling --full

The original is built from its own configuration, narrower unless ``--full``; its weights are written as a checkpoint in
the published form and that file is opened as users do, so that finding stage and sizes takes part. Both get the same
latents, of sizes that the U-Net cannot halve evenly too, and everything beside them. Fails when an output differs by
more than 1e-4 of its range.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
FOLDERS = {"base": "base", "interpolation": "interpolation", "upscaling": "vsr"}
# Frames, height and width of the latents; three halvings do not divide the second.
SIZES = ((8, 16, 24), (5, 10, 13))
NARROW = (256, 256, 256, 512)
WORDS = 9
# Stable Diffusion 1's U-Net, from which the original builds its first two.
STABLE_DIFFUSION = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
}


def our_modules() -> tuple[ModuleType, ModuleType]:
    """Our reading of files and our attention function."""
    sys.path.insert(0, str(ROOT))
    importlib.import_module("bootstrap").import_package()
    return tuple(
        importlib.import_module(f"mask_guided_video.{name}")
        for name in ("video_models.lavie.files", "attention_patches.kernels.torch_attention")
    )


def original_unet(clone: Path, stage: str, full: bool) -> nn.Module:
    """The original's class for a stage, with its own configuration."""
    folder = clone / FOLDERS[stage] / "models"
    if not (folder / "unet.py").is_file():
        raise FileNotFoundError(f"{folder} holds no unet.py; give the folder of a clone of Vchitect/LaVie.")
    name = f"original_{stage}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    module = importlib.import_module(f"{name}.unet")
    if stage == "upscaling":
        written = json.loads((folder.parent / "configs" / "unet_3d_config.json").read_text(encoding="utf-8"))
        values = {key: value for key, value in written.items() if not key.startswith("_")}
        values.pop("freeze_pretrained_2d_upsampler", None)
        if not full:
            values |= {"block_out_channels": NARROW, "cross_attention_dim": 96}
        return module.UNet3DVSRModel(**values)
    values = dict(STABLE_DIFFUSION)
    if not full:
        values |= {"block_out_channels": NARROW, "cross_attention_dim": 96}
    if stage == "interpolation":
        values |= {"in_channels": 8, "use_first_frame": True}
    return module.UNet3DConditionModel(**values)


def randomise(model: nn.Module) -> None:
    """Weights so large that every part has a say, also those that training starts from zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("rotary_emb.freqs"):
                continue
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(values * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(values * 0.2 + float("norm" in name and name.endswith("weight")))


def answers(original: nn.Module, ours: nn.Module, stage: str, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """What both make of the same input."""
    generator = torch.Generator().manual_seed(1)
    config = ours.config

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, text = random(2, config.in_channels, *size), random(2, WORDS, config.cross_attention_dim)
    times = torch.tensor([481, 481])
    with torch.no_grad():
        if stage == "upscaling":
            labels = torch.tensor([50, 120])
            latents = x[:, : config.out_channels]
            theirs = original(latents, times, x[:, config.out_channels :], text, labels).sample
            return theirs, ours(x, times, text, class_labels=labels)
        return original(x, times, text).sample, ours(x, times, text)


def compare(clone: Path, stage: str, full: bool, files: Any, attention: Any) -> float:
    """The largest difference of a stage, in parts of the output's range."""
    started = time.perf_counter()
    original = original_unet(clone, stage, full).eval()
    randomise(original)
    state = original.state_dict()
    elements = sum(value.numel() for value in state.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / files.PUBLISHED_FILES[stage]
        torch.save({"ema": state}, path)
        found, config = files.open_unet(path)
        # Weights stay mapped to the file.
        ours = files.make_unet(config, attention_function=attention, device="meta")
        left = ours.load_state_dict(found, strict=False, assign=True)
        if config.stage != stage or left.unexpected_keys or any("rotary" not in name for name in left.missing_keys):
            raise RuntimeError(f"{stage} was opened as {config.stage} with {left}.")
        worst = 0.0
        for size in SIZES:
            theirs, own = answers(original, ours.eval(), stage, size)
            reach = float(theirs.max() - theirs.min())
            difference = float((theirs - own).abs().max()) / reach
            worst = max(worst, difference)
            sys.stdout.write(f"{stage:>14} {size}: differs by {difference:.1e} of a range of {reach:.2f}\n")
            sys.stdout.flush()
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{stage:>14} {len(state)} tensors, {elements:,} elements, {seconds:.0f} s\n")
    return worst


def main() -> int:
    """Compare the stages asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clone", type=Path, help="folder of a clone of Vchitect/LaVie")
    parser.add_argument("--stages", nargs="+", choices=tuple(FOLDERS), default=list(FOLDERS))
    parser.add_argument(
        "--full", action="store_true", help="published sizes: 8 GB of memory, 4 GB of disk and minutes a stage"
    )
    options = parser.parse_args()
    files, attention = our_modules()
    worst = max(compare(options.clone, stage, options.full, files, attention.attention) for stage in options.stages)
    sys.stdout.write(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}\n")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
