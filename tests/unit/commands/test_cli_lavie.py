"""Mask Refine from the command line on files of LaVie's form, tiny and random."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny_lavie_files import write_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_checkpoint, write_tokenizer

from mask_guided_video.recipes.mask_refine.files import FILES


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The base model, a Stable Diffusion 1 checkpoint, its tokenizer elsewhere, and a mask."""
    root = tmp_path_factory.mktemp("models")
    mask = np.zeros((3, 16, 24), dtype=np.float32)
    mask[:, 4:12, 4:12] = 1
    np.save(root / "mask.npy", mask)
    return {
        "model": write_unet(root / "lavie_base.pt", "base"),
        "interpolation": write_unet(root / "lavie_interpolation.pt", "interpolation"),
        "parts": write_checkpoint(root / "sd1.safetensors", tiny_clip(), tiny_vae()),
        "tokenizer": write_tokenizer(root / "words"),
        "masks": root / "mask.npy",
    }


def arguments(places, out, *left_out: str, **changes):
    options = {
        "prompt": "a red ball on sand", "object": "red ball", "steps": 2, "frames": 3, "height": 16, "width": 24,
        "out": out, **{name: places[name] for name in ("model", "parts", "tokenizer", "masks")}, **changes,
    }  # fmt: skip
    return ["refine", "--quiet"] + [
        part for name, value in options.items() if name not in left_out for part in (f"--{name}", str(value))
    ]


def test_refine_on_a_lavie_file(cli, places, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(arguments(places, out, mode="cross_text")) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "lavie_base.pt" and report["guided"]
    assert report["films"]["first"]["sha256"] != report["films"]["second"]["sha256"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("left_out", "changes", "message"),
    [
        (("parts",), {}, "lavie_base.pt holds LaVie's U-Net only.*--parts PATH"),
        (("model",), {}, "the set 'toybox' has its own text encoder and VAE"),
        ((), {"model": "interpolation"}, "lavie_interpolation.pt is LaVie's interpolation model.*base model is wanted"),
        ((), {"parts": "masks"}, "mask.npy is not a weight file"),
        ((), {"tokenizer": "."}, "holds no tokenizer"),
        ((), {"height": 20}, "height is 20, not a multiple of 8"),
    ],
)
def test_what_does_not_go_together_is_one_line(cli, places, tmp_path, capsys, left_out, changes, message):
    changes = {name: places.get(value, value) for name, value in changes.items()}
    assert cli.main(arguments(places, tmp_path / "out", *left_out, **changes)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
