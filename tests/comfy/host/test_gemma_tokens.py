"""Phrases among the tokens of LTX-2's text encoders, Gemma 3 and Gemma 4, at the places where these leave them.

The tokenizers are ComfyUI's, around small vocabularies in Gemma's own file formats; what the encoder keeps is what its
own code keeps, with the language model left out.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from mask_guided_video.backbones.families.ltx import LTXVideo
from mask_guided_video.backbones.families.ltx_av import LTXVideoSound
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.host.prompts.prompt_tokens import token_spans

pytestmark = pytest.mark.comfy

FAMILY = LTXVideoSound()
SENTENCES = ["a red ball bounces on sand", "the blue ball, a lamp (dry) [old]", "Red Ball", "dog dog: 1.3"]
RED, BALL = "\u7ea2", "\u7403"
# Letters that small vocabularies learn, besides those words.
LETTERS = [RED + BALL, "\u4e00", "\u4e2a", "\u5728", "\u6c99", "\u6ee9", "\u4e0a", "-"]
CHINESE = f"\u4e00\u4e2a{RED}{BALL}\u5728\u6c99\u6ee9\u4e0a"
# Ids 0 to 3 of both.
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def clip_of(tokenizer: Any) -> Any:
    """A real CLIP of which only the tokenizer is there."""
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    return clip


def gemma3() -> Any:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    from comfy.text_encoders.lt import LTXAVGemmaTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, *LETTERS] * 50),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        **dict(zip(("pad_id", "eos_id", "bos_id", "unk_id"), range(4), strict=True)),
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        byte_fallback=True,
        minloglevel=2,
    )
    data = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    return LTXAVGemmaTokenizer(tokenizer_data={"spiece_model": data})


def gemma4() -> Any:
    encoder = pytest.importorskip("comfy.text_encoders.gemma4", reason="this ComfyUI has no Gemma 4")
    if not hasattr(encoder, "Gemma4_12B"):
        pytest.skip("this ComfyUI has no Gemma 4 of LTX-2's size")
    from comfy.text_encoders.lt import ltxav_gemma4_tokenizer
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    read = [f"<0x{byte:02X}>" for byte in range(256)]
    # Merges within words: whole sentences would become one token.
    words = [part for sentence in SENTENCES for part in sentence.replace(" ", "\n \n").split("\n")]
    words += [f" {word}" for sentence in SENTENCES for word in sentence.split()]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIALS, *read], show_progress=False)
    tokenizer.train_from_iterator([*words, *LETTERS] * 50, trainer)
    data = torch.frombuffer(bytearray(tokenizer.to_str().encode("utf-8")), dtype=torch.uint8)
    return ltxav_gemma4_tokenizer(encoder.Gemma4_12B.tokenizer)(tokenizer_data={"tokenizer_json": data})


@pytest.fixture(scope="module", params=["gemma3_12b", "gemma4"])
def gemma(request: pytest.FixtureRequest, comfy_folder: Any) -> tuple[Any, Any, str]:
    """CLIP, the decoder of its ids, and the name under which it returns them."""
    clip = clip_of({"gemma3_12b": gemma3, "gemma4": gemma4}[request.param]())
    own = getattr(clip.tokenizer, clip.tokenizer.clip)
    return clip, own.tokenizer.decode, request.param


class Reader(torch.nn.Module):
    """Stands for Gemma: the output at a token is its id."""

    special_tokens = {"start": 2, "pad": 0}

    def __init__(self) -> None:
        super().__init__()
        self.transformer = self

    def get_input_embeddings(self) -> Any:
        return lambda ids, out_dtype: ids[..., None].to(out_dtype)

    def encode_token_weights(self, chunks: Any) -> Any:
        from comfy.sd1_clip import SDClipModel

        embeddings, mask, *_ = SDClipModel.process_tokens(
            self, [[entry[0] for entry in chunk] for chunk in chunks], "cpu"
        )
        return embeddings[:, None], None, {"attention_mask": mask}


def kept_ids(clip: Any, prompt: str, key: str) -> list[int]:
    """Ids of the tokens whose embeddings LTX-2's own encoder hands on, in their order."""
    from comfy.text_encoders.lt import LTXAVTEModel

    encoder = LTXAVTEModel.__new__(LTXAVTEModel)
    torch.nn.Module.__init__(encoder)
    encoder.gemma3_12b, encoder.text_encoder_key, encoder.compat_mode = Reader(), key, False
    encoder.execution_device, encoder.text_projection_type = torch.device("cpu"), "dual_linear"
    encoder.text_embedding_projection = lambda out: out[:, 0]
    out, _, extra = encoder.encode_token_weights(clip.tokenize(prompt))
    assert extra["unprocessed_ltxav_embeds"]
    return out[0, :, 0].long().tolist()


def said(ids: list[int], decode: Any, positions: tuple[int, ...]) -> list[str]:
    """The words of the tokens at some places, each run of places apart."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return [decode([ids[position] for position in run]).strip() for run in runs]


CASES = [
    ("a red ball bounces on sand", "red ball", ["red ball"]),
    ("a Red BALL bounces on sand", "red ball", ["Red BALL"]),
    ("Red Ball, red ball; RED BALL.", "red ball", ["Red Ball", "red ball", "RED BALL"]),
    ("red ball", "red ball", ["red ball"]),
    ("a ball-shaped lamp, the ballerina, a ball", "ball", ["ball", "ball"]),
    ("a  red\nball\ton sand", "on sand", ["on sand"]),
    # Parentheses and numbers are words here, not weights.
    ("(red ball:1.3) on (the (sand))", "red ball", ["red ball"]),
    ("a (red:1.3) ball", "red", ["red"]),
    ("a (red:1.3) ball", "1.3", ["1.3"]),
    ("a [red ball] on sand", "red ball", ["red ball"]),
    # The host takes backslashes off even so.
    (r"ball \(red\) on sand", "red", ["red"]),
    (r"ball \(red\) on sand", r"\(red\) on", ["(red) on"]),
    (CHINESE, RED + BALL, [RED + BALL]),
]


@pytest.mark.parametrize(("prompt", "phrase", "expected"), CASES)
def test_phrases_where_the_encoder_leaves_them(gemma: Any, prompt: str, phrase: str, expected: list[str]) -> None:
    clip, decode, key = gemma
    ids = kept_ids(clip, prompt, key)
    assert ids[0] == 2 and len(ids) < 100
    spans = token_spans(clip, prompt, [phrase], FAMILY)
    assert spans.length == 1024 and spans.phrases == (phrase,)
    assert said(ids, decode, spans.positions[0]) == expected
    assert spans.ordinary == tuple(range(1, len(ids)))
    # Registers are never taken for a repetition of the text.
    assert spans.repeated(1024).positions == spans.positions


def test_all_ids_of_a_prompt(gemma: Any) -> None:
    clip, _, key = gemma
    for prompt, _, _ in CASES:
        tokens = clip.tokenize(prompt, return_word_ids=True)
        assert len(tokens[key][0]) == 1024
        assert FAMILY.text_ids(tokens) == [-1, *kept_ids(clip, prompt, key)[1:]]


def test_texts_of_powers_of_two(gemma: Any) -> None:
    """A text of 128 tokens divides the 1024 rows; its words stand in one of them all the same."""
    clip, decode, key = gemma
    for wanted in (64, 128, 512):
        words = 1
        while len(kept_ids(clip, "dog " * words + "red ball", key)) < wanted:
            words += 1
        prompt = "dog " * words + "red ball"
        spans = token_spans(clip, prompt, ["red ball"], FAMILY)
        assert spans.length == 1024
        assert said(kept_ids(clip, prompt, key), decode, spans.repeated(1024).positions[0]) == ["red ball"]


def test_prompts_longer_than_the_padding(gemma: Any) -> None:
    clip, decode, key = gemma
    prompt = "dog " * 1100 + "red ball"
    ids = kept_ids(clip, prompt, key)
    spans = token_spans(clip, prompt, ["red ball"], FAMILY)
    assert len(ids) > 1024 and spans.length == FAMILY.text_rows(len(ids)) >= len(ids)
    assert said(ids, decode, spans.positions[0]) == ["red ball"]


def test_conditionings_of_a_prompt(gemma: Any) -> None:
    """As the encoder makes it, and as old single-file checkpoints do, with the registers in it."""
    clip, decode, key = gemma
    prompt = "a blue lamp, a red ball"
    ids = kept_ids(clip, prompt, key)
    for length in (len(ids), 1024):
        embedding, other = torch.randn(1, length, 8), torch.randn(1, len(ids) + 1, 8)
        spans = token_spans(clip, prompt, ["red ball"], FAMILY, [[embedding, {}], [other, {}]])
        assert spans.prompts == {prompt_name(embedding)} and spans.length == 1024
        assert said(ids, decode, spans.positions[0]) == ["red ball"]
    for length in (len(ids) - 1, len(ids) + 1, 1152):
        with pytest.raises(ValueError, match=f"conditioning has {length} text tokens.*cannot have made"):
            token_spans(clip, prompt, ["red ball"], FAMILY, [[torch.randn(1, length, 8), {}]])


def test_background_and_missing_words(gemma: Any) -> None:
    clip, decode, key = gemma
    prompt = "a red ball (dry) on sand"
    spans = token_spans(clip, prompt, ["red ball"], FAMILY, background_phrase="on sand")
    assert said(kept_ids(clip, prompt, key), decode, spans.background) == ["on sand"]
    assert spans.begin == (0,)
    with pytest.raises(ValueError, match="'cube' does not occur in the prompt"):
        token_spans(clip, prompt, ["cube"], FAMILY)
    with pytest.raises(ValueError, match=f"makes tokens for {key}, but LTX-Video reads t5xxl; connect the CLIP"):
        token_spans(clip, prompt, ["red"], LTXVideo())


def test_other_text_encoders_are_named(comfy_folder: Any) -> None:
    from comfy.text_encoders.lt import LTXVT5Tokenizer

    with pytest.raises(ValueError, match="makes tokens for t5xxl, but LTX-2 .* reads gemma3_12b or gemma4"):
        token_spans(clip_of(LTXVT5Tokenizer()), "a red ball", ["ball"], FAMILY)
