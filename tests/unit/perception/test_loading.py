"""Weight files and model folders, whole and broken: the answer names the file, what is wrong and what to do."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mask_guided_video.perception.loading import (
    check_model_folder,
    load_model_folder,
    load_processor,
    model_type_of,
)
from mask_guided_video.weight_files.reading import load_checked, read_metadata, read_state

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Code:
    """Would run a command when it is unpickled the careless way."""

    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("modern", [True, False])
def test_wrapping_prefix_and_format_make_no_difference(tmp_path, wrapper, prefix, modern):
    state = {prefix + name: value for name, value in STATE.items()}
    content = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=modern)
    found = read_state(tmp_path / "weights.pth")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    assert torch.equal(read_state(str(tmp_path / name))["layer.weight"], STATE["layer.weight"])


def contents(kind, folder):
    if kind in ("code", "namespace"):
        import argparse

        value = Code() if kind == "code" else argparse.Namespace(epochs=3)
        torch.save({"model": STATE, "args": value}, folder / "whole.pth")
        return (folder / "whole.pth").read_bytes()
    if kind.startswith("cut"):
        save = save_file if "safetensors" in kind else torch.save
        options = {"_use_new_zipfile_serialization": False} if "old" in kind else {}
        save(STATE, folder / "whole", **options)
        whole = (folder / "whole").read_bytes()
        return whole[: {"cut": 500, "cut old": -5, "cut old early": 30, "cut safetensors": -3}[kind]]
    objects = {"list": [torch.ones(2)], "no tensors": {"epoch": 3}, "nothing": {}}
    if kind in objects:
        torch.save(objects[kind], folder / "whole.pth")
        return (folder / "whole.pth").read_bytes()
    return {
        "empty": b"",
        "page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 375042383\n",
        "text": b"404: not found",
        "zeros": bytes(2000),
        "noise": bytes(torch.randint(0, 256, (3000,), generator=torch.Generator().manual_seed(0)).tolist()),
        "pickle": pickle.dumps({"weights": Code()}, protocol=2),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("empty", RuntimeError, "is empty"),
        ("page", RuntimeError, "is a web page"),
        ("pointer", RuntimeError, "Git LFS pointer"),
        ("cut", RuntimeError, "cut short"),
        ("cut old", RuntimeError, "cut short"),
        ("cut old early", RuntimeError, "cut short"),
        ("cut safetensors", RuntimeError, "cut short"),
        ("text", RuntimeError, "not a weight file"),
        ("zeros", RuntimeError, "cannot be read"),
        ("noise", RuntimeError, "not a weight file|cannot be read"),
        ("code", ValueError, "holds code or objects"),
        ("namespace", ValueError, r"objects \(argparse.Namespace\)"),
        ("pickle", ValueError, "holds code or objects"),
        ("list", ValueError, "holds a list"),
        ("no tensors", ValueError, "no named tensors"),
        ("nothing", ValueError, "no named tensors"),
    ],
)
def test_broken_files_get_one_clear_sentence(tmp_path, capsys, kind, error, message):
    path = tmp_path / "broken.pth"
    path.write_bytes(contents(kind, tmp_path))
    with pytest.raises(error, match=message) as caught:
        read_state(path)
    text = str(caught.value)
    assert str(path) in text and "weights_only" not in text
    assert "\n" not in text and len(text) < 350 + len(str(path))
    assert "never run" not in capsys.readouterr().out


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="choose a weight file"):
        read_state(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="choose a weight file"):
        read_state(tmp_path)


def test_a_large_file_is_mapped_and_not_copied(tmp_path):
    torch.save({"weights": torch.zeros(1000, 1000)}, tmp_path / "large.pth")
    value = read_state(tmp_path / "large.pth")["weights"]
    model = nn.Linear(1000, 1000, bias=False, device="meta")
    load_checked(model, {"weight": value}, "large.pth")
    assert model.weight.data_ptr() != value.data_ptr()
    assert model.weight.device.type == "cpu" and not model.weight.any()


def test_fitting_weights_are_loaded_in_the_types_of_the_module():
    for device in ("cpu", "meta"):
        module = nn.Sequential(nn.Linear(3, 2, device=device), nn.BatchNorm1d(2, device=device)).half().train()
        state = {
            "0.weight": STATE["layer.weight"],
            "0.bias": STATE["layer.bias"],
            **nn.Sequential(nn.Identity(), nn.BatchNorm1d(2)).state_dict(),
        }
        assert load_checked(module, state, "file.pth") is module and not module.training
        assert module[0].weight.dtype == torch.float16 and module[0].weight.device.type == "cpu"
        assert module[0].weight.tolist() == STATE["layer.weight"].tolist()
        assert module[1].num_batches_tracked.dtype == torch.int64


def test_a_misfit_names_its_tensors():
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abcd"})
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "x": torch.zeros(1), "y.z": torch.zeros(1)}
    with pytest.raises(RuntimeError) as caught:
        load_checked(module, state, "folder/file.pth")
    text = str(caught.value)
    assert "folder/file.pth does not fit ModuleDict" in text
    assert "6 tensors are missing (b.bias, b.weight, c.bias, ...)" in text
    assert "2 tensors are unknown (x, y.z)" in text
    assert "1 tensor is of another size (a.weight is [2, 3] instead of [2, 2])" in text


def test_names_to_ignore_may_be_missing_or_left_over():
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    state = {"body.weight": torch.ones(2, 2), "body.bias": torch.ones(2), "optimizer.step": torch.zeros(1)}
    load_checked(module, state, "file.pth", ignore=("head.", "optimizer."))
    assert module["body"].bias.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match=r"1 tensor is unknown \(optimizer.step\)"):
        load_checked(module, state, "file.pth", ignore=("head.",))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"sam"', "<html>"])
def test_a_broken_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="not a valid configuration"):
        model_type_of(tmp_path)


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        model_type_of(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        model_type_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert model_type_of(tmp_path) == "bert"
    with pytest.raises(ValueError, match="'bert'; choose a folder of type 'sam' or 'sam_hq'"):
        check_model_folder(tmp_path, "sam", "sam_hq")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        check_model_folder(tmp_path, "bert")


@pytest.fixture
def model_folder(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_whole_folders_load_in_the_wanted_type(model_folder):
    from transformers import BertModel

    for dtype in (torch.float32, torch.float16):
        model = load_model_folder(BertModel, model_folder, "bert", dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype} and not model.training


@pytest.mark.parametrize("length", [0, 20, 3000])
def test_broken_weights_in_a_folder_are_named(model_folder, length):
    from transformers import BertModel

    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(RuntimeError, match="copy the folder again") as caught:
        load_model_folder(BertModel, model_folder, "bert", torch.float32)
    assert str(model_folder) in str(caught.value)


def test_tensors_that_a_folder_lacks_are_named(model_folder):
    from safetensors.torch import load_file
    from transformers import BertModel

    weights = model_folder / "model.safetensors"
    state = load_file(weights)
    lost = sorted(state)[:4]
    save_file({name: value for name, value in state.items() if name not in lost}, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match="4 tensors are missing") as caught:
        load_model_folder(BertModel, model_folder, "bert", torch.float32)
    assert lost[0].removeprefix("bert.") in str(caught.value) and "..." in str(caught.value)


def test_tensors_of_another_size_in_a_folder_are_named(model_folder):
    from safetensors.torch import load_file
    from transformers import BertModel

    weights = model_folder / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "pooler.dense.bias": torch.zeros(3)}, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"1 tensor is of another size \(pooler\.dense\.bias"):
        load_model_folder(BertModel, model_folder, "bert", torch.float32)


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_size": [1]}])
def test_a_configuration_of_nonsense_is_named(model_folder, change):
    from transformers import BertModel

    path = model_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RuntimeError, match=r"config\.json does not describe this model") as caught:
        load_model_folder(BertModel, model_folder, "bert", torch.float32)
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_not_run(model_folder, capsys):
    from transformers import BertModel

    (model_folder / "model.safetensors").unlink()
    torch.save({"weights": Code()}, model_folder / "pytorch_model.bin")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        load_model_folder(BertModel, model_folder, "bert", torch.float32)
    assert str(model_folder) in str(caught.value) and "weights_only" not in str(caught.value)
    assert "never run" not in capsys.readouterr().out


def test_processor_files_that_are_missing_are_named(tmp_path):
    from transformers import BertTokenizer

    with pytest.raises(RuntimeError, match="processor files in .* cannot be read"):
        load_processor(BertTokenizer, tmp_path / "nowhere")


def test_the_header_of_a_safetensors_file(tmp_path):
    save_file(STATE, tmp_path / "own.safetensors", metadata={"config": "{}"})
    save_file(STATE, tmp_path / "plain.safetensors")
    torch.save(STATE, tmp_path / "own.pt")
    assert read_metadata(tmp_path / "own.safetensors") == {"config": "{}"}
    assert read_metadata(tmp_path / "plain.safetensors") == {}
    assert read_metadata(tmp_path / "own.pt") == {}


def test_averaged_weights_come_first(tmp_path):
    torch.save({"ema": STATE, "model": {"other": torch.zeros(1)}}, tmp_path / "own.pt")
    assert read_state(tmp_path / "own.pt").keys() == STATE.keys()
