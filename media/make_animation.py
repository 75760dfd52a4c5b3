"""Make the README's moving picture: a clip by itself, the path drawn for it, and the same noise following that path.

    python media/make_animation.py               # writes media/guided_path.gif
    python media/make_animation.py --seed 2      # another noise

It runs ``cli.py guide`` twice with the same seed, at strength 0 and at strength 1, and lays both clips beside the masks
of ``media/circle_path.json``. Pixels are repeated, not smoothed. Object and background were chosen out of six pairs for
how well the object follows the path (red on grass follows worse); the seed is the first one.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "media" / "circle_path.json"
PROMPT, OBJECT, BACKGROUND = "a yellow ball moves right on the sea", "yellow ball", "on the sea"
FRAMES, FRAMES_PER_SECOND = 16, 8
# Sides of a frame of the Toybox and of what is shown, in pixels.
SIDE, SHOWN = 64, 256
GAP, MARGIN, TITLE = 12, 12, 30
PAPER, INK, LINE, FILL = (255, 255, 255), (36, 36, 40), (230, 60, 60), (252, 222, 222)
TITLES = ("Without guidance", "The path you draw", "With guidance")


def module(name: str) -> Any:
    """Import a module of the package under its fixed name."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    importlib.import_module("bootstrap").import_package()
    return importlib.import_module(f"mask_guided_video.{name}")


def clip_of(strength: float, seed: int, folder: Path) -> Tensor:
    """Frames uint8 [T, 64, 64, 3] of one run of ``cli.py guide``."""
    command = [
        *(sys.executable, str(ROOT / "cli.py"), "guide", "--prompt", PROMPT),
        *("--object", OBJECT, "--background", BACKGROUND, "--path", str(PATH), "--frames", str(FRAMES)),
        *("--seed", str(seed), "--strength", str(strength), "--colour-reference", "none"),
        *("--fps", str(FRAMES_PER_SECOND), "--threads", "1", "--quiet", "--out", str(folder)),
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    frames, _ = module("recipes.films.files").read_film_bytes(folder / "film.mp4")
    # The file shows every pixel of the clip several times.
    step = frames.shape[1] // SIDE
    return frames[:, step // 2 :: step, step // 2 :: step]


def guide_panel(frame: int, boxes: list[Any]) -> Any:
    """The whole path with the object's mask at one frame."""
    from PIL import Image, ImageDraw

    fine = 4
    panel = Image.new("RGB", (SHOWN * fine, SHOWN * fine), (246, 246, 248))
    pen = ImageDraw.Draw(panel)
    corners = [[value * fine for value in box.corners] for box in boxes]
    middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in corners]
    pen.ellipse(corners[frame], fill=FILL, outline=LINE, width=2 * fine)
    pen.line([value for middle in middles for value in middle], fill=LINE, width=fine, joint="curve")
    for place, (x, y) in enumerate(middles):
        radius = (5 if place == frame else 2) * fine
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=LINE)
    return panel.resize((SHOWN, SHOWN), Image.LANCZOS)


def clip_panel(pixels: Tensor, box: Any | None) -> Any:
    """A frame enlarged by repeating its pixels, with the outline of the object's mask where one is given."""
    from PIL import Image, ImageDraw

    panel = Image.fromarray(pixels.numpy()).resize((SHOWN, SHOWN), Image.NEAREST)
    if box is not None:
        ImageDraw.Draw(panel).ellipse(box.corners, outline=LINE, width=2)
    return panel


def animation(before: Tensor, after: Tensor) -> list[Any]:
    """Pictures of the animation: both clips [T, 64, 64, 3] with the path between them."""
    from PIL import Image, ImageDraw

    paths = module("perception.masks.mask_paths").parse_paths(PATH.read_text(encoding="utf-8"))
    font = module("perception.pictures.drawing").font_of(16)
    boxes = paths[0].boxes(FRAMES, SHOWN, SHOWN)
    size = 3 * SHOWN + 2 * GAP + 2 * MARGIN, TITLE + SHOWN + MARGIN
    pictures = []
    for frame in range(FRAMES):
        picture = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(picture)
        panels = (clip_panel(before[frame], None), guide_panel(frame, boxes), clip_panel(after[frame], boxes[frame]))
        for place, (title, panel) in enumerate(zip(TITLES, panels, strict=True)):
            left = MARGIN + place * (SHOWN + GAP)
            picture.paste(panel, (left, TITLE))
            pen.text((left + SHOWN // 2, TITLE // 2), title, INK, font=font, anchor="mm")
        pictures.append(picture)
    return pictures


def write_gif(pictures: list[Any], path: Path) -> None:
    """Write the pictures as a looping GIF with one palette, so that nothing flickers."""
    from PIL import Image

    strip = Image.new("RGB", (pictures[0].width, pictures[0].height * len(pictures)))
    for place, picture in enumerate(pictures):
        strip.paste(picture, (0, place * picture.height))
    palette = strip.quantize(256, method=Image.MEDIANCUT)
    coded = [picture.quantize(palette=palette, dither=Image.NONE) for picture in pictures]
    coded[0].save(
        path, save_all=True, append_images=coded[1:], duration=1000 // FRAMES_PER_SECOND, loop=0, optimize=False
    )


def main(arguments: list[str] | None = None) -> int:
    """Run both clips and write the animation."""
    parser = argparse.ArgumentParser(description="Make the README's moving picture.")
    parser.add_argument("--seed", type=int, default=1, help="of the noise of both clips")
    parser.add_argument("--out", type=Path, default=ROOT / "media" / "guided_path.gif")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        before, after = (clip_of(strength, options.seed, Path(folder) / str(strength)) for strength in (0, 1))
    write_gif(animation(before, after), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
