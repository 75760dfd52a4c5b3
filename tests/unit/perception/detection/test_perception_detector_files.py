"""Detector files that are broken, dangerous or of another kind: a clear answer each."""

import pickle

import pytest
import torch

from mask_guided_video.perception.open_models import open_detector


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def grounding_dino_names():
    from mask_guided_video.perception.detection import grounding_dino_original as original

    names = (original._PATCHES, original._BIASES, original._QUERIES, original._WIDENING, original._WORDS)
    return {name: torch.zeros(300, 300) for name in (*names, original._POSITIONS, original._TEXT_WIDENING)}


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.pth"
    path.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"empty\.pth is empty"):
        open_detector(path)


@pytest.mark.parametrize("length", [10, 200, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short(tmp_path, length, zipped):
    path = tmp_path / "cut.pth"
    torch.save({"model": grounding_dino_names()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: length if isinstance(length, int) else int(len(content) * length)])
    with pytest.raises(RuntimeError, match=r"cut\.pth .*copy it again"):
        open_detector(path)


def test_a_file_with_code_in_it_runs_nothing(tmp_path):
    harmed = tmp_path / "harmed"
    for name, write in (("zipped.pth", torch.save), ("plain.pth", None)):
        path = tmp_path / name
        content = {"model": {"weight": torch.zeros(1)}, "more": Harmful(harmed)}
        if write:
            write(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        with pytest.raises((ValueError, RuntimeError), match=rf"{name} (holds code|is not a weight file)"):
            open_detector(path)
    assert not harmed.exists()


def test_files_of_another_family(tmp_path):
    from safetensors.torch import save_file

    save_file({"model.diffusion_model.weight": torch.zeros(2)}, tmp_path / "video.safetensors")
    with pytest.raises(ValueError, match=r"not a GroundingDINO file .*model\.diffusion_model\.weight"):
        open_detector(tmp_path / "video.safetensors")
    torch.save({"image_encoder.blocks.0.attn.qkv.weight": torch.zeros(2)}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="not a GroundingDINO file"):
        open_detector(tmp_path / "sam.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        open_detector(tmp_path / "list.pth")


def test_a_detector_of_an_unknown_size(tmp_path):
    torch.save({"model": grounding_dino_names()}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="300 channels and window 9"):
        open_detector(tmp_path / "odd.pth")


def test_a_checkpoint_without_a_vocabulary(tmp_path):
    from mask_guided_video.perception.detection import grounding_dino_original as original

    state = {
        **grounding_dino_names(),
        original._PATCHES: torch.zeros(96, 3, 4, 4),
        original._BIASES: torch.zeros(169, 3),
    }
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "odd.pth")
    with pytest.raises(FileNotFoundError, match=r"odd\.pth needs the vocabulary of BERT.*google-bert"):
        open_detector(tmp_path / "odd.pth")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_detector(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_detector(tmp_path)
