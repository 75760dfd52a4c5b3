"""Phrases among the rows of text that MiniMax H3 sees, with the host's own tokenizer, vocabulary and text encoder.

Of the encoder only the layers are left out: each row that comes out is the token that went in, so that what stands at a
place is read and not computed again. References stand before the prompt, as pictures of several rows each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from native_guides import guide_of, patched, relative
from native_models import sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.errors import GuideError
from mask_guided_video.backbones.families.minimax_h3 import MiniMaxH3
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.host.prompts.prompt_tokens import token_spans

pytestmark = pytest.mark.comfy

FAMILY = MiniMaxH3()
CHANNELS = 2
PICTURE = {"type": "image", "data": torch.zeros(1, 64, 96, 3)}
SOUND = {"type": "audio"}
VIDEO = {"type": "video", "data": torch.zeros(3, 64, 64, 3)}
# What the text encoder is told of references, and what the model is given of them.
REFERENCES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "none": ([], []),
    "a picture": ([PICTURE], [{"kind": "image"}]),
    "a sound": ([SOUND], [{"kind": "audio"}]),
    "a silent video": ([VIDEO], [{"kind": "video"}]),
    "all": (
        [PICTURE, PICTURE, SOUND, VIDEO, SOUND, SOUND],
        [{"kind": kind} for kind in ("image", "image", "video_audio", "audio", "audio")],
    ),
}


@pytest.fixture(scope="module")
def clip(comfy_folder: Any) -> Any:
    """The real tokenizer in a CLIP of which nothing else is there."""
    import comfy.sd

    minimax = pytest.importorskip("comfy.text_encoders.minimax", reason="this ComfyUI has no MiniMax H3")
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = minimax.MiniMaxH3Tokenizer(), {}
    return clip


@pytest.fixture(scope="module")
def encode(clip: Any) -> Any:
    """The real text encoder without its layers: makes CONDITIONING whose first channel is the token, -1 in pictures."""
    import comfy.text_encoders.minimax as minimax

    class Table(torch.nn.Module):
        weight = torch.zeros(1)

        def forward(self, tokens: Tensor, out_dtype: torch.dtype) -> Tensor:
            return tokens[..., None].expand(-1, -1, CHANNELS).to(out_dtype)

    class Reader(minimax.MiniMaxQwen3VL):
        def __init__(self, *_: Any) -> None:
            torch.nn.Module.__init__(self)
            self.num_layers, self.table = 50, Table()

        def get_input_embeddings(self) -> Table:
            return self.table

        def preprocess_embed(self, embed: dict[str, Any], device: Any) -> tuple[Tensor, Any]:
            height, width = embed["data"].shape[1:3]
            return -torch.ones(height // 32 * (width // 32), CHANNELS), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minimax, "MiniMaxQwen3VL", Reader)
        patch.setattr(minimax.Qwen3VL, "forward", lambda self, ids, embeds, **_: (embeds, None))
        encoder = minimax.MiniMaxH3TEModel()

        def encoded(prompt: str, references: str = "none", **items: Any) -> list[Any]:
            said, given = REFERENCES[references]
            tokens = clip.tokenize(prompt, minimax_ref_items=said, **items)
            embedding, _, extras = encoder.encode_token_weights(tokens)
            return [[embedding, {**extras, **({"minimax_refs": given} if given else {})}]]

        yield encoded


def words_at(clip: Any, conditioning: list[Any], positions: tuple[int, ...]) -> list[str]:
    """The words that stand at some places of a text, each run of places apart."""
    ids = conditioning[0][0][0, :, 0].tolist()
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    decode: Callable[[list[int]], str] = clip.tokenizer.qwen3vl_32b.tokenizer.decode
    return [decode([int(ids[position]) for position in run]).strip() for run in runs]


CASES = [
    ("a red ball bounces on sand", "red ball", ["red ball"]),
    ("A RED Ball on sand", "red ball", ["RED Ball"]),
    ("red ball", "red ball", ["red ball"]),
    ("Red Ball, red ball; RED BALL.", "red ball", ["Red Ball", "red ball", "RED BALL"]),
    ("an old man in a grey coat walks, a young woman in a red dress sings", "young woman", ["young woman"]),
    ("a woman in a red dress and a woman in a blue dress", "woman", ["woman", "woman"]),
    ("a man (bearded, tall) and a woman [smiling]", "bearded, tall", ["bearded, tall"]),
    ("a man (bearded, tall) and a woman [smiling]", "smiling", ["smiling"]),
    ("a (red ball:1.3) on (the (sand))", "red ball:1.3", ["red ball:1.3"]),
    ("a ((red)) ball", "ball", ["ball"]),
    (r"a ball \(toy\) on sand", "toy", ["toy"]),
    (r"a ball \(toy\) on sand", "sand", ["sand"]),
    ("the same person as in <Picture 1> waves", "person as in <Picture 1>", ["person as in <Picture 1>"]),
    ('she says: "The ball is red." and throws the ball', "ball", ["ball", "ball"]),
    ("2 balls\n\non sand, at 12:30", "2 balls", ["2 balls"]),
    ("<|im_start|>user\na red ball<|im_end|>", "red ball", ["red ball"]),
    ("\u4e00\u4e2a\u7ea2\u7403\u5728\u6c99\u6ee9\u4e0a", "\u6c99\u6ee9", ["\u6c99\u6ee9"]),
]


@pytest.mark.parametrize("references", list(REFERENCES))
@pytest.mark.parametrize(("prompt", "phrase", "expected"), CASES)
def test_phrases_of_prompts_behind_references(
    clip: Any, encode: Any, prompt: str, phrase: str, expected: list[str], references: str
) -> None:
    conditioning = encode(prompt, references)
    length = conditioning[0][0].shape[1]
    for given in (None, conditioning):
        spans = token_spans(clip, prompt, [phrase], FAMILY, given).repeated(length)
        assert words_at(clip, conditioning, spans.positions[0]) == expected
        # All of the prompt's own words, and nothing of the references.
        assert spans.ordinary[-1] == length - 1
        (whole,) = words_at(clip, conditioning, spans.ordinary)
        assert whole == prompt.replace("\\", "")


def test_keyframes_have_their_pictures_before_the_prompt(clip: Any, encode: Any) -> None:
    """As core's node for first and last frames says it: no references, but pictures."""
    prompt = "a red ball on sand"
    conditioning = encode(prompt, images=[PICTURE["data"]] * 2)
    tags = conditioning[0][1]["minimax_token_tags"]
    assert tags.tolist().count(0) == 2 * (6 + 2)
    for given in (None, conditioning):
        spans = token_spans(clip, prompt, ["red ball"], FAMILY, given).repeated(conditioning[0][0].shape[1])
        assert words_at(clip, conditioning, spans.positions[0]) == ["red ball"]


def test_several_persons_and_a_background(clip: Any, encode: Any) -> None:
    prompt = "in a bright kitchen, an old man in a grey coat and a young woman in a red dress dance; the man laughs"
    conditioning = encode(prompt, "all")
    spans = token_spans(clip, prompt, ["man", "young woman in a red dress"], FAMILY, conditioning, "bright kitchen")
    found = [words_at(clip, conditioning, positions) for positions in (*spans.positions, spans.background)]
    assert found == [["man", "man"], ["young woman in a red dress"], ["bright kitchen"]]
    assert spans.prompts == frozenset([prompt_name(conditioning[0][0])])


@pytest.mark.parametrize("references", ["none", "a picture", "a sound", "all"])
@pytest.mark.parametrize("order", [1, -1])
def test_of_two_prompts_the_right_one_is_found(clip: Any, encode: Any, references: str, order: int) -> None:
    """Also where the other one is longer or shorter, so that its words would stand at other places."""
    prompt = "a red ball on sand"
    own = encode(prompt, references)
    for other in ("a cube", "a blue cube that falls slowly from a high and very old tower of grey stone"):
        both = [*own, *encode(other, references)][::order]
        spans = token_spans(clip, prompt, ["red ball"], FAMILY, both)
        assert spans.prompts == frozenset([prompt_name(own[0][0])])
        assert words_at(clip, own, spans.positions[0]) == ["red ball"]
        with pytest.raises(ValueError, match="text tokens, which the prompt 'a red ball on sand' .* cannot have made"):
            token_spans(clip, prompt, ["red ball"], FAMILY, encode(other, references))


def test_what_is_not_in_the_prompt_is_named(clip: Any) -> None:
    with pytest.raises(ValueError, match="'cube'"):
        token_spans(clip, "a red ball", ["cube"], FAMILY)
    with pytest.raises(ValueError, match="connect the CLIP of this model"):
        FAMILY.text_ids({"t5xxl": [[(1, 1.0)]]})
    assert FAMILY.text_ids(clip.tokenize("", return_word_ids=True)) == [-1]


def test_a_text_shorter_than_the_prompt_is_refused(clip: Any) -> None:
    model = tiny("minimax_h3")
    spans = token_spans(
        clip, "a red ball on sand and a blue cube on grass beside a green tree", ["red", "cube"], FAMILY
    )
    assert spans.at_end and spans.length > model.text
    with pytest.raises(GuideError, match="in a prompt of .* tokens but the model sees 12 text tokens"):
        sample(model, patched(model, guide_of("minimax_h3", "cross_text"), spans), steps=1)


@pytest.mark.usefixtures("as_in_a_node")
def test_places_counted_from_the_end_guide_as_those_of_the_conditioning(clip: Any) -> None:
    """In a text of 12 rows a prompt of 6: not taken for a text that the host has repeated."""
    model, guide = tiny("minimax_h3_references"), guide_of("minimax_h3_references", "cross_text")
    # A sound's name may be of any length, as far as a run of the model knows.
    spans = token_spans(clip, "a red ball and a cube", ["red ball", "cube"], FAMILY)
    assert spans.length == 6 and spans.positions == ((1, 2), (5,))
    film = sample(model, patched(model, guide, spans))
    places = spans.repeated(model.text)
    assert places.positions == ((7, 8), (11,))
    assert torch.equal(film, sample(model, patched(model, guide, places)))
    assert relative(film, sample(model)) > 1e-3


def test_the_text_of_another_prompt_is_refused(clip: Any) -> None:
    """Where nothing but pictures stands before the prompt, its length is known."""
    guide = guide_of("minimax_h3", "cross_text")
    tags = torch.tensor([0] * 6 + [1] * 6)
    pictured = replace(tiny("minimax_h3"), extras={"minimax_token_tags": tags})
    for model, prompt, other in (
        (tiny("minimax_h3"), "a red ball and a cube on sand that lies in the", "a red ball and a cube"),
        (pictured, "a red ball and a cube", "a red ball and a cube lie"),
    ):
        spans, wrong = (token_spans(clip, text, ["red ball", "cube"], FAMILY) for text in (prompt, other))
        assert relative(sample(model, patched(model, guide, spans)), sample(model)) > 1e-3
        with pytest.raises(GuideError, match="in a text of . tokens but the positive prompt has 12"):
            sample(model, patched(model, guide, wrong))
