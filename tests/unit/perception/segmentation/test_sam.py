"""SAM as the tracker asks it: real classes at tiny size, and the trained Toybox segmenter."""

from pathlib import Path

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt, Point
from mask_guided_video.perception.segmentation import sam
from mask_guided_video.perception.segmentation.sam_format import original_sam, to_original
from mask_guided_video.toybox import world
from mask_guided_video.training.perception.models import build_segmenter, build_segmenter_processor

TOYBOX = Path(__file__).resolve().parents[4] / "toybox" / "segmenter"

BOX = Box(10, 8, 30, 26)
PROMPTS = (
    ObjectPrompt(0, box=BOX),
    ObjectPrompt(0, points=(Point(20, 20),)),
    ObjectPrompt(0, points=(Point(20, 20), Point(3, 3, False))),
    ObjectPrompt(0, box=BOX, points=(Point(20, 20), Point(3, 3, False))),
    ObjectPrompt(0, mask=torch.ones(40, 56)),
    ObjectPrompt(0, box=Box(1, 2, 20, 20)),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_segmenter().eval()
    with torch.no_grad():
        # Untrained logits are almost zero; larger ones make differences visible.
        for parameter in model.parameters():
            parameter.mul_(2.0)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.mul_(100.0)
    return model


@pytest.fixture
def segmenter(model):
    return sam.SamSegmenter(model, build_segmenter_processor(), batch_size=3)


@pytest.fixture(scope="module")
def toybox():
    return sam.load_folder(TOYBOX)


@pytest.fixture(scope="module")
def clip():
    import numpy as np

    scene = world.scene_from_words(
        [("red", "ball", "right"), ("blue", "square", "still")], "sand", np.random.default_rng(11)
    )
    return world.render(scene)


def overlap(first, second):
    return float((first & second).sum() / (first | second).sum())


@pytest.fixture
def passes(segmenter, monkeypatch):
    """How many pictures each pass of the encoder had."""
    counts = []
    look = segmenter._look
    monkeypatch.setattr(segmenter, "_look", lambda pixels: counts.append(len(pixels)) or look(pixels))
    return counts


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], [3, 3, 2]),
        ([7, 6, 5, 4, 3, 2, 1, 0], [1, 3, 3, 1]),
        ([0, 2, 4, 6], [3, 2]),
        ([4, 4, 5, 6, 7], [3, 1]),
        ([2], [3]),
        ([7, 0], [1, 1]),
    ],
)
def test_frames_are_encoded_ahead_in_the_direction_of_travel(segmenter, passes, asked, expected):
    opened = segmenter.open(Film(torch.rand(8, 40, 56, 3)))
    for frame in asked:
        opened.segment(frame, PROMPTS[:1])
    assert passes == expected


def test_only_the_latest_frames_are_kept(segmenter, passes):
    opened = segmenter.open(Film(torch.rand(9, 40, 56, 3)))
    for frame in range(9):
        opened.segment(frame, PROMPTS[:1])
        assert opened._encoded.embeddings.shape[0] <= 3
    assert passes == [3, 3, 3]


def test_nothing_is_encoded_before_it_is_asked_for(segmenter, passes):
    opened = segmenter.open(Film(torch.rand(4, 40, 56, 3)))
    assert opened.segment(2, []) == [] and passes == []


def test_frames_answer_alike_in_any_order(segmenter):
    film = Film(torch.rand(7, 40, 56, 3))
    forwards, backwards = segmenter.open(film), segmenter.open(film)
    first = [forwards.segment(frame, PROMPTS[:1])[0] for frame in range(7)]
    last = [backwards.segment(frame, PROMPTS[:1])[0] for frame in reversed(range(7))][::-1]
    for one, other in zip(first, last, strict=True):
        assert (one.mask.int() - other.mask.int()).abs().max() <= 1
        assert one.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.parametrize("with_guesses", [False, True])
def test_prompts_of_all_kinds_answer_alike_together_and_alone(segmenter, with_guesses):
    opened = segmenter.open(Film(torch.rand(1, 40, 56, 3)))
    guess = torch.zeros(40, 56)
    guess[4:24, 12:40] = 1
    guesses = [guess, None, None, guess, None, None] if with_guesses else []
    together = opened.segment(0, PROMPTS, guesses)
    for number, prompt in enumerate(PROMPTS):
        alone = opened.segment(0, [prompt], guesses[number : number + 1])[0]
        assert alone.mask.shape == (40, 56) and alone.mask.dtype == torch.uint8 and alone.mask.device.type == "cpu"
        assert (together[number].mask.int() - alone.mask.int()).abs().max() <= 1
        assert together[number].score == pytest.approx(alone.score, abs=1e-5)
    assert len({bytes(sighting.mask.numpy()) for sighting in together}) == len(PROMPTS)


def test_guesses_points_and_boxes_all_matter(segmenter):
    opened = segmenter.open(Film(torch.rand(1, 40, 56, 3)))
    guess = torch.zeros(40, 56)
    guess[4:24, 12:40] = 1
    bare, hinted, other = (
        opened.segment(0, PROMPTS[:1], guesses)[0].mask for guesses in ((), [guess], [guess.flip(0)])
    )
    assert not torch.equal(bare, hinted) and not torch.equal(hinted, other)
    # A mask of the prompt's own goes before a guess.
    own = ObjectPrompt(0, box=BOX, mask=guess)
    assert torch.equal(opened.segment(0, [own], [guess.flip(0)])[0].mask, hinted)
    assert torch.equal(opened.segment(0, [own])[0].mask, hinted)


def test_many_prompts_go_through_in_parts(segmenter, monkeypatch):
    opened = segmenter.open(Film(torch.rand(1, 40, 56, 3)))
    many = [ObjectPrompt(0, box=Box(x, 5, 12, 20)) for x in range(40)]
    at_once = opened.segment(0, many)
    monkeypatch.setattr(sam, "PROMPTS_PER_PASS", 7)
    in_parts = opened.segment(0, many)
    assert len(at_once) == len(in_parts) == 40
    for one, other in zip(at_once, in_parts, strict=True):
        assert (one.mask.int() - other.mask.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(33, 47, 3), (80, 20, 4), (64, 64, 3), (1, 1, 3), (200, 301, 3)])
def test_odd_frames_are_normal_input(segmenter, shape):
    height, width = shape[:2]
    opened = segmenter.open(Film((torch.rand(1, *shape) * 255).to(torch.uint8)))
    sighting = opened.segment(0, [ObjectPrompt(0, box=Box(0, 0, width, height))])[0]
    assert sighting.mask.shape == (height, width) and 0.0 <= sighting.score <= 1.0


def test_what_cannot_be_used_is_refused(segmenter):
    opened = segmenter.open(Film(torch.rand(2, 40, 56, 3)))
    with pytest.raises(ValueError, match="6 prompts and 1 guesses"):
        opened.segment(0, PROMPTS, [None])
    with pytest.raises(ValueError, match=r"rough mask has shape \[4, 4\]"):
        opened.segment(0, PROMPTS[:1], [torch.zeros(4, 4)])
    broken = torch.rand(2, 40, 56, 3)
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="frame 1 holds NaN"):
        segmenter.open(Film(broken)).segment(1, PROMPTS[:1])


def test_an_empty_mask_alone_says_nothing(segmenter):
    opened = segmenter.open(Film(torch.rand(1, 40, 56, 3)))
    empty = ObjectPrompt(0, mask=torch.zeros(40, 56))
    first, second = opened.segment(0, [empty, PROMPTS[0]])
    assert not first.mask.any() and first.mask.shape == (40, 56) and first.score == 0.0
    assert second.mask.any()


def test_an_object_without_pixels_is_not_seen(segmenter, monkeypatch):
    opened = segmenter.open(Film(torch.rand(1, 40, 56, 3)))
    empty = (torch.full((1, 32, 32), -9.0), torch.tensor([0.8]))
    monkeypatch.setattr(segmenter, "decode", lambda *given, **more: empty)
    sighting = opened.segment(0, PROMPTS[:1])[0]
    assert sighting.score == 0.0 and not sighting.mask.any()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["boxes", "points", "both", "hints"])
def test_the_original_package_gives_the_same_logits(segmenter, kind):
    pytest.importorskip("segment_anything")
    from segment_anything import SamPredictor

    original = original_sam(segmenter.model.config).eval()
    original.load_state_dict(to_original(segmenter.model.state_dict()))
    predictor = SamPredictor(original)
    frame = (torch.rand(48, 64, 3) * 255).to(torch.uint8).numpy()
    predictor.set_image(frame)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [20.0, 2.5, 60.0, 30.0]]) if kind != "points" else None
    points = torch.rand(2, 3, 2) * 48 if kind in ("points", "both") else None
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]]) if points is not None else None
    hints = torch.randn(2, 1, 32, 32) * 4 if kind == "hints" else None
    candidates = kind == "boxes"
    logits, scores = segmenter.decode(segmenter.encode([frame]), boxes, points, labels, hints, candidates)
    _, theirs, low = predictor.predict_torch(points, labels, boxes, hints, candidates, return_logits=True)
    best = theirs.argmax(1)
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, low[[0, 1], best], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, theirs[[0, 1], best], atol=1e-4, rtol=1e-4)


def test_trained_weights_find_drawn_objects(toybox, clip):
    opened = toybox.open(Film(torch.from_numpy(clip.frames)))
    for frame in range(len(clip.frames)):
        boxes = [Box.from_corners(*clip.boxes[number, frame].tolist()) for number in range(2)]
        found = opened.segment(frame, [ObjectPrompt(frame, box=box) for box in boxes])
        for sighting, truth in zip(found, clip.masks[:, frame], strict=True):
            assert overlap(sighting.mask > 127, torch.from_numpy(truth)) > 0.85
            assert sighting.score > 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("whole", [False, True])
def test_half_precision_finds_the_same(toybox, clip, dtype, whole):
    half = sam.load_folder(TOYBOX, dtype)
    assert {parameter.dtype for parameter in half.model.vision_encoder.parameters()} == {dtype}
    assert {parameter.dtype for parameter in half.model.mask_decoder.parameters()} == {torch.float32}
    if whole:
        half.model.to(dtype)
    film = Film(torch.from_numpy(clip.frames[:2]))
    box = Box.from_corners(*clip.boxes[0, 0].tolist())
    prompts = [
        ObjectPrompt(0, box=box),
        ObjectPrompt(0, box=box, points=(Point(box.x + box.width / 2, box.y + box.height / 2),)),
        ObjectPrompt(0, mask=torch.from_numpy(clip.masks[0, 0])),
    ]
    for one, other in zip(half.open(film).segment(0, prompts), toybox.open(film).segment(0, prompts), strict=True):
        assert overlap(one.mask > 127, other.mask > 127) > 0.97
        assert one.score == pytest.approx(other.score, abs=0.01)


def test_large_encoders_take_one_picture_at_once(model):
    from types import SimpleNamespace

    encoder = torch.nn.Linear(1, 1)
    large = SimpleNamespace(image_size=1024, patch_size=16, num_attention_heads=12)
    stand_in = SimpleNamespace(config=SimpleNamespace(vision_config=large), vision_encoder=encoder)
    assert sam.pictures_per_pass(stand_in) == 1
    assert sam.pictures_per_pass(model) == sam.PICTURES_PER_PASS


def test_folders_without_processor_files_use_the_usual_preparation(model, clip, tmp_path):
    model.save_pretrained(tmp_path)
    bare = sam.load_folder(tmp_path)
    build_segmenter_processor().save_pretrained(tmp_path)
    described = sam.load_folder(tmp_path)
    film = Film(torch.from_numpy(clip.frames[:1]))
    masks = [loaded.open(film).segment(0, PROMPTS[:1])[0].mask for loaded in (bare, described)]
    assert torch.equal(*masks)
