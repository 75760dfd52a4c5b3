"""GroundingDINO files in the original format: the package's classes, Swin-T with short encoders, random weights."""

import json
import warnings

import pytest
import torch
from original_grounding_dino import WORDS, build, write, write_vocabulary

from mask_guided_video.perception.detection import grounding_dino_original as original
from mask_guided_video.perception.detection.detector import ObjectDetector
from mask_guided_video.weight_files.reading import read_state

pytest.importorskip("groundingdino")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding-dino")
    model = build(folder / "bert-base-uncased")
    write(model, folder / "groundingdino_swint_ogc.pth")
    return folder / "groundingdino_swint_ogc.pth"


@pytest.fixture(scope="module")
def grounding(checkpoint):
    return original.load_state(read_state(checkpoint), checkpoint)


@pytest.fixture
def small(monkeypatch):
    """Pictures of 96 pixels instead of 800."""
    monkeypatch.setattr(original, "SHORT_SIDE", 96)
    monkeypatch.setattr(original, "LONG_SIDE", 160)


def test_a_checkpoint_is_recognised_loaded_and_run_without_a_warning(grounding, checkpoint, small, capsys):
    assert original.claims(read_state(checkpoint))
    assert not original.claims({"backbone.0.patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)})
    frames = torch.rand(2, 50, 71, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ObjectDetector(grounding).detect(frames, ["Red balls", "blue square."], 0.0, 0.0, 1.0)
    assert all(0 < len(boxes) <= 60 for boxes in found)
    assert {box.label for box in found[0]} <= {"red balls", "blue square"}
    assert all(box.corners[2] <= 71.001 and box.corners[3] <= 50.001 for box in found[0])
    assert capsys.readouterr().out == ""


@torch.no_grad()
def test_the_same_caption_gives_two_pictures_what_each_gets_alone(grounding, small):
    pictures = grounding.prepare(torch.rand(2, 60, 80, 3))
    both = grounding.ground(pictures, ["red ball", "dog"])
    for number in range(2):
        alone = original.Pictures(pictures.pixels[number : number + 1], 60, 80)
        single = grounding.ground(alone, ["red ball", "dog"])
        torch.testing.assert_close(both.scores[number], single.scores[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(both.boxes[number], single.boxes[0], atol=1e-2, rtol=1e-3)


def test_pictures_are_encoded_once_for_all_phrases(grounding, small):
    frames = torch.rand(1, 60, 80, 3)
    runs = []
    handle = grounding.model.backbone[0].register_forward_hook(lambda *_: runs.append(1))
    found = ObjectDetector(grounding).detect(frames, ["red ball", "dog"], 0.0, 0.0, 1.0)[0]
    handle.remove()
    assert len(runs) == 1
    alone = [
        box
        for phrase in ("red ball", "dog")
        for box in ObjectDetector(grounding).detect(frames, [phrase], 0.0, 0.0, 1.0)[0]
    ]
    assert sorted(found, key=repr) == sorted(alone, key=repr)


def test_scores_are_read_where_each_phrase_stands(grounding, small):
    pictures = grounding.prepare(torch.rand(1, 60, 80, 3))
    with torch.no_grad():
        answer = grounding.model(pictures.pixels, captions=["red balls. dog."])
    # [CLS] red ball ##s . dog . [SEP]
    scores = grounding.ground(pictures, ["red balls", "dog"]).scores
    torch.testing.assert_close(scores[..., 0], answer["pred_logits"][..., 1:4].amax(-1).sigmoid())
    torch.testing.assert_close(scores[..., 1], answer["pred_logits"][..., 5].sigmoid())


def test_every_weight_is_that_of_the_file(grounding, checkpoint):
    state = read_state(checkpoint)
    for name, value in grounding.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    held = [*grounding.model.parameters(), *grounding.model.buffers()]
    assert not any(value.is_meta for value in held) and not grounding.model.training


def test_the_package_is_as_before_after_building(checkpoint):
    import importlib

    package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
    before = package.BertModelWarper, package.get_tokenlizer
    original.load_state(read_state(checkpoint), checkpoint)
    assert (package.BertModelWarper, package.get_tokenlizer) == before
    assert before[0] is not original.TextEncoder
    with pytest.raises(ZeroDivisionError), original.package_with(None, None):
        raise ZeroDivisionError
    assert (package.BertModelWarper, package.get_tokenlizer) == before


def test_what_does_not_fit_is_named(checkpoint):
    state = read_state(checkpoint)
    lost = {name: value for name, value in state.items() if not name.startswith("input_proj.1")}
    with pytest.raises(RuntimeError, match=r"4 tensors are missing \(input_proj\.1\.0\.bias"):
        original.load_state(lost, checkpoint)
    with pytest.raises(RuntimeError, match=r"1 tensor is unknown \(extra\.weight\)"):
        original.load_state({**state, "extra.weight": torch.zeros(1)}, checkpoint)
    with pytest.raises(RuntimeError, match=r"of another size \(feat_map\.weight is \[3, 3\]"):
        original.load_state({**state, "feat_map.weight": torch.zeros(3, 3)}, checkpoint)
    with pytest.raises(ValueError, match="97 channels and window 7"):
        original.load_state({**state, original._PATCHES: torch.zeros(97, 3, 4, 4)}, checkpoint)


@pytest.mark.parametrize(
    ("channels", "biases", "name"), [(96, 169, "swin_T_224_1k"), (128, 529, "swin_B_384_22k"), (192, 529, "swin_L_384")]
)
def test_the_size_is_read_from_shapes(channels, biases, name):
    shapes = {
        original._PATCHES: torch.empty(channels, 3, 4, 4),
        original._BIASES: torch.empty(biases, 3),
        original._QUERIES: torch.empty(900, 256),
        original._WIDENING: torch.empty(2048, 256),
        "transformer.encoder.layers.5.norm1.weight": torch.empty(256),
        "transformer.decoder.layers.5.norm1.weight": torch.empty(256),
    }
    config = original.config_of(shapes)
    assert config.backbone.startswith(name)
    assert (config.enc_layers, config.dec_layers, config.num_queries, config.dim_feedforward) == (6, 6, 900, 2048)


def test_the_vocabulary_is_found_near_the_file_or_asked_for(tmp_path):
    path = tmp_path / "grounding-dino" / "model.pth"
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt .* into .*bert-base-uncased"):
        original.find_bert(path)
    for folder in (tmp_path / "bert-base-uncased", path.parent, path.parent / "bert-base-uncased"):
        write_vocabulary(folder)
        assert original.find_bert(path) == folder
    with pytest.raises(FileNotFoundError, match="neither"):
        original.load_tokenizer(tmp_path)


def test_vocabularies_of_both_formats_read_alike_and_broken_ones_say_so(tmp_path, grounding, checkpoint):
    plain = original.load_tokenizer(write_vocabulary(tmp_path / "plain"))
    (tmp_path / "json").mkdir()
    path = tmp_path / "json" / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {word: number for number, word in enumerate(WORDS)}}}))
    other = original.load_tokenizer(path.parent)
    assert plain("Red balls?")["input_ids"] == other("Red balls?")["input_ids"] == [2, 8, 10, 13, 6, 3]
    path.write_text("{}")
    with pytest.raises(RuntimeError, match="cannot be read"):
        original.load_tokenizer(path.parent)
    (tmp_path / "plain" / "vocab.txt").write_text("red\nball\n")
    with pytest.raises(RuntimeError, match="not a vocabulary of BERT"):
        original.load_tokenizer(tmp_path / "plain")
    (tmp_path / "plain" / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(99))]))
    with pytest.raises(RuntimeError, match="113 words and .* knows 40"):
        original.load_state(read_state(checkpoint), checkpoint, bert_folder=tmp_path / "plain")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1080, 1920, (749, 1333)),
        (720, 1280, (749, 1333)),
        (480, 640, (800, 1066)),
        (64, 64, (800, 800)),
        (832, 480, (1333, 769)),
    ],
)
def test_pictures_get_the_size_that_the_original_gives_them(height, width, expected):
    from groundingdino.datasets.transforms import resize
    from PIL import Image

    theirs, _ = resize(Image.new("RGB", (width, height)), None, 800, 1333)
    assert original.resized(height, width) == theirs.size[::-1]
    assert abs(expected[0] - theirs.height) <= 1 and abs(expected[1] - theirs.width) <= 1
