"""Checkpoints of a run: written, read, and what is said of a file that is damaged."""

import pytest
import torch

from mask_guided_video.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None, "cut", "other", "flipped"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "tuned": torch.arange(1000.0)})
    assert load_checkpoint(path, entries=("step", "tuned"))["step"] == 1
    whole = bytearray(path.read_bytes())
    if content == "flipped":
        whole[len(whole) // 2] ^= 255
        path.write_bytes(whole)
    elif content == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "other":
        torch.save([1, 2], path)
    elif content is None:
        save_checkpoint(path, {"steps": 1})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt' is damaged .*; remove it to start anew"):
        load_checkpoint(path, entries=("step", "tuned"))
