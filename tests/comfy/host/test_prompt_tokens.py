"""Phrases among the tokens of ComfyUI's own tokenizers: every position is proved by decoding what stands there."""

from __future__ import annotations

import io
import json

import pytest
import torch
from prompt_encoders import IndexEncoder, NoEncoder, clip_of, ids_of, said

from mask_guided_video.backbones.families.cosmos import Cosmos
from mask_guided_video.backbones.families.hunyuan_video import HunyuanVideo
from mask_guided_video.backbones.families.lavie import LaVie
from mask_guided_video.backbones.families.ltx import LTXVideo
from mask_guided_video.backbones.families.mochi import Mochi
from mask_guided_video.backbones.families.unet import StableDiffusion, StableVideoDiffusion
from mask_guided_video.backbones.families.wan import Wan
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.host.prompts.prompt_tokens import token_spans

pytestmark = pytest.mark.comfy

RED, BALL = "\u7ea2", "\u7403"
# "A red ball lies on the sand."
CHINESE = f"\u4e00\u4e2a{RED}{BALL}\u5728\u6c99\u6ee9\u4e0a"
# How Llama 3 takes text apart before it joins letters.
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPECIALS = {
    "<|begin_of_text|>": 128000,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
    "<image>": 128257,
    "<pad>": 128258,
}


@pytest.fixture(scope="module", params=["l", "sdxl", "g"])
def image_clip(request, comfy_folder):
    """CLIP of SD1.5, of SDXL and of SDXL's refiner, with the decoder of its ids and the name it returns them under."""
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLClipGTokenizer, SDXLTokenizer

    tokenizer = {
        "l": SD1Tokenizer,
        "sdxl": SDXLTokenizer,
        "g": lambda: SD1Tokenizer(clip_name="g", tokenizer=SDXLClipGTokenizer),
    }[request.param]()
    own = tokenizer.clip_g if request.param == "g" else tokenizer.clip_l
    return clip_of(tokenizer), own.tokenizer.decode, "g" if request.param == "g" else "l"


@pytest.fixture(scope="module", params=["LTX", "Mochi", "Cosmos"])
def t5_clip(request, comfy_folder):
    from comfy.text_encoders import cosmos, genmo, lt

    tokenizer, family, length = {
        "LTX": (lt.LTXVT5Tokenizer, LTXVideo(), 128),
        "Mochi": (genmo.MochiT5Tokenizer, Mochi(), 256),
        "Cosmos": (cosmos.CosmosT5Tokenizer, Cosmos(), 512),
    }[request.param]
    clip = clip_of(tokenizer())
    return clip, getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer.decode, family, length


@pytest.fixture(scope="module")
def wan_clip(comfy_folder):
    """Wan's tokenizer around a small sentencepiece model with UMT5's special ids."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    from comfy.text_encoders.wan import WanT5Tokenizer

    sentences = ["a red ball bounces on sand", "the blue ball, a ball-shaped lamp", "Red Ball", "RED BALL", CHINESE]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 50),
        model_writer=model,
        vocab_size=85,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    data = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    clip = clip_of(WanT5Tokenizer(tokenizer_data={"spiece_model": data}))
    return clip, clip.tokenizer.clip_umt5xxl.tokenizer.tokenizer.decode


def write_llama_tokenizer(folder):
    """A small byte-level tokenizer with Llama 3's rules, and its ids where the encoder asks for them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    split = [
        pre_tokenizers.Split(Regex(LLAMA_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(split)
    text = ["user a red ball bounces on the sand\n\n", "\n\n\n", "red", "ball", RED + BALL]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learner.train_from_iterator(text * 50, trainer)
    learned = json.loads(learner.to_str())["model"]
    named = {"user": 882, "\u010a\u010a": 271}
    numbers = (number for number in range(1000, 3000))
    vocabulary = {token: named.get(token) or next(numbers) for token in learned["vocab"]}
    assert set(named) <= set(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE({**vocabulary, **LLAMA_SPECIALS}, merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA_SPECIALS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, LLAMA_SPECIALS[begin])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": begin, "eos_token": "<|eot_id|>", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def hunyuan_clip(comfy_folder, tmp_path_factory):
    """HunyuanVideo's real tokenizer around a small Llama-like vocabulary."""
    import transformers
    from comfy.text_encoders import hunyuan_video

    folder = tmp_path_factory.mktemp("hunyuan")
    (folder / "llama_tokenizer").mkdir()
    write_llama_tokenizer(folder / "llama_tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        # The host looks for the vocabulary beside its own file.
        patch.setattr(hunyuan_video, "__file__", str(folder / "hunyuan_video.py"))
        if int(transformers.__version__.split(".")[0]) >= 5:
            # This class no longer reads Llama 3's rules from the file but takes those of Llama 2.
            patch.setattr(hunyuan_video, "LlamaTokenizerFast", transformers.PreTrainedTokenizerFast)
        clip = clip_of(hunyuan_video.HunyuanVideoTokenizer())
    return clip, clip.tokenizer.llama.tokenizer.decode


def hunyuan_context(tokens):
    """What HunyuanVideo's real encoder keeps of these tokens: for each place their number, negative for a picture."""
    from comfy.text_encoders.hunyuan_video import HunyuanVideoClipModel

    encoder = HunyuanVideoClipModel.__new__(HunyuanVideoClipModel)
    torch.nn.Module.__init__(encoder)
    encoder.llama, encoder.clip_l = IndexEncoder(), NoEncoder()
    return encoder.encode_token_weights(tokens)[0]


FAMILY = StableDiffusion()


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a red ball on sand", "red ball", ["red ball"]),
        ("A RED Ball on sand", "red ball", ["red ball"]),
        ("ball on sand, a ball and a last ball", "Ball", ["ball"] * 3),
        ("a (red ball:1.3) on sand", "red ball", ["red ball"]),
        ("a ((red) ball:0.8) on (sand)", "red ball", ["red ball"]),
        ("a (big (red:1.2) [ball]) on sand", "big red", ["big red"]),
        ("a red ball on sand", "(red ball:1.4)", ["red ball"]),
        (r"a ball \(toy\) on (sand \(dry\):1.2)", "sand", ["sand"]),
        (r"a ball \(toy\) on sand", r"ball \(toy\)", ["ball (toy)"]),
        ("a (foot:1.1)ball and a ball", "ball", ["ball"]),
        ("football, ballerinas: a ball!", "ball", ["ball"]),
        ("a ball-shaped red_ball's end", "ball", ["ball", "ball"]),
        ("red, round ball", "red, round", ["red, round"]),
        ("2 balls\n\non sand", "2 balls", ["2 balls"]),
        (f"a {CHINESE} ball", RED + BALL, [RED + BALL]),
        (CHINESE, CHINESE[-1], [CHINESE[-1]]),
    ],
)
def test_clip_phrases(image_clip, prompt, phrase, expected) -> None:
    clip, decode, key = image_clip
    spans = token_spans(clip, prompt, [phrase], FAMILY)
    assert spans.phrases == (phrase,) and spans.length == 77 and spans.prompts is None
    # Where a decoder sets spaces between letters and marks differs between versions of transformers.
    found = [words.replace(" ", "") for words in said(ids_of(clip, prompt, key), decode, spans.positions[0])]
    assert found == [words.replace(" ", "") for words in expected]


def test_clip_phrases_in_later_chunks(image_clip) -> None:
    clip, decode, key = image_clip
    # 75 words fill a chunk: the 80 before are a chunk and 5 words, the 162 before the last are two chunks and 12.
    prompt = "dog " * 80 + "red ball " + "dog " * 80 + "ball"
    spans = token_spans(clip, prompt, ["red ball", "ball"], FAMILY)
    assert spans.length == 231
    assert spans.positions == ((83, 84), (84, 167))
    ids = ids_of(clip, prompt, key)
    assert said(ids, decode, spans.positions[0]) == ["red ball"]
    assert said(ids, decode, spans.positions[1]) == ["ball", "ball"]


def test_clip_phrase_over_the_border_of_chunks(image_clip) -> None:
    clip, decode, key = image_clip
    prompt = "dog " * 74 + "red ball on sand"
    spans = token_spans(clip, prompt, ["red ball"], FAMILY)
    # The last word of the first chunk; end and beginning tokens between them are no part of it.
    assert spans.positions == ((75, 78),)
    assert said(ids_of(clip, prompt, key), decode, spans.positions[0]) == ["red", "ball"]


def test_clip_keeps_short_weighted_texts_in_one_chunk(image_clip) -> None:
    clip, decode, key = image_clip
    prompt = "dog " * 74 + "(red ball:1.2) on sand"
    spans = token_spans(clip, prompt, ["red ball"], FAMILY)
    assert spans.positions == ((78, 79),) and spans.length == 154
    assert said(ids_of(clip, prompt, key), decode, spans.positions[0]) == ["red ball"]


@pytest.fixture
def embedding_clip(image_clip, tmp_path):
    """The same with a folder that holds an embedding of three vectors, for each encoder."""
    from safetensors.torch import save_file

    clip, decode, key = image_clip
    generator = torch.Generator().manual_seed(0)
    vectors = {"clip_l": torch.randn(3, 768, generator=generator), "clip_g": torch.randn(3, 1280, generator=generator)}
    save_file(vectors, tmp_path / "toy.safetensors")
    inner = [getattr(clip.tokenizer, name) for name in ("clip_l", "clip_g") if hasattr(clip.tokenizer, name)]
    with pytest.MonkeyPatch.context() as patch:
        for tokenizer in inner:
            patch.setattr(tokenizer, "embedding_directory", str(tmp_path))
        yield clip, decode, key


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a embedding:toy red ball", "red ball", (5, 6)),
        ("embedding:toy, red ball, (embedding:toy:1.2) ball", "ball", (6, 11)),
        ("a red embedding:toy ball", "embedding:toy", (3, 4, 5)),
        ("a red embedding:toy ball", "red embedding:toy ball", (2, 3, 4, 5, 6)),
        ("a red (embedding:toy.safetensors:1.2) ball", "red", (2,)),
        ("a embedding:absent red ball", "red ball", (2, 3)),
    ],
)
def test_clip_embeddings_have_their_places(embedding_clip, prompt, phrase, expected) -> None:
    clip, decode, key = embedding_clip
    spans = token_spans(clip, prompt, [phrase], FAMILY)
    assert spans.positions == (expected,)
    ids = ids_of(clip, prompt, key)
    words = decode([ids[position] for position in expected if ids[position] is not None]).split()
    assert words == [word for word in phrase.replace("embedding:toy", "").split()] * (2 if phrase == "ball" else 1)
    vectors = [position for position in expected if ids[position] is None]
    assert len(vectors) == (3 if "embedding" in phrase else 0)


T5_CASES = [
    ("a red ball bounces on sand", "red ball", ["red ball"]),
    ("a Red BALL bounces on sand", "red ball", ["Red BALL"]),
    ("Red Ball, red ball; RED BALL.", "red ball", ["Red Ball", "red ball", "RED BALL"]),
    ("red ball", "red ball", ["red ball"]),
    ("(red ball:1.3) on (the (sand))", "red ball", ["red ball"]),
    ("a (red:1.3) ball", "red ball", ["red ball"]),
    ("a ball-shaped lamp, the ballerina, a ball", "ball", ["ball", "ball"]),
    ('the "red ball" bounces', "red ball", ["red ball"]),
    ("a  red\nball\ton sand", "red ball", ["red ball"]),
    (r"ball \(red\) on sand", "red", ["red"]),
    ("a blue ball on sand", "on sand", ["on sand"]),
]


@pytest.mark.parametrize(("prompt", "phrase", "expected"), T5_CASES)
def test_t5_phrases(t5_clip, prompt, phrase, expected) -> None:
    clip, decode, family, length = t5_clip
    spans = token_spans(clip, prompt, [phrase], family)
    assert spans.length == length
    assert said(ids_of(clip, prompt, "t5xxl"), decode, spans.positions[0]) == expected


def test_t5_long_prompts_and_padding(t5_clip) -> None:
    clip, decode, family, length = t5_clip
    prompt = "dog " * length + "red ball"
    spans = token_spans(clip, prompt, ["red ball"], family)
    ids = ids_of(clip, prompt, "t5xxl")
    assert spans.length == len(ids) > length
    assert spans.positions == ((len(ids) - 3, len(ids) - 2),)
    assert said(ids, decode, spans.positions[0]) == ["red ball"]
    clip = clip_of(clip.tokenizer)
    clip.tokenizer_options = {"t5xxl_min_length": length + 50, "t5xxl_min_padding": 3}
    spans = token_spans(clip, "a red ball", ["red ball"], family)
    assert spans.length == length + 50
    assert said(ids_of(clip, "a red ball", "t5xxl"), decode, spans.positions[0]) == ["red ball"]


def test_t5_knows_no_chinese(t5_clip) -> None:
    clip, _, family, _ = t5_clip
    with pytest.raises(ValueError, match="has no tokens of its own among the .* its letters are unknown"):
        token_spans(clip, CHINESE, [RED + BALL], family)


@pytest.mark.parametrize(("prompt", "phrase", "expected"), [case for case in T5_CASES if '"' not in case[0]])
def test_umt5_phrases(wan_clip, prompt, phrase, expected) -> None:
    clip, decode = wan_clip
    spans = token_spans(clip, prompt, [phrase], Wan())
    assert spans.length == 512
    assert said(ids_of(clip, prompt, "umt5xxl"), decode, spans.positions[0]) == expected


def test_umt5_tokens_over_the_border_of_a_phrase(wan_clip) -> None:
    clip, _ = wan_clip
    pieces = clip.tokenizer.clip_umt5xxl.tokenizer.tokenizer.encode(CHINESE, out_type=str)[:-1]
    assert "".join(pieces) == "\u2581" + CHINESE
    stops = [len("".join(pieces[: at + 1])) - 1 for at in range(len(pieces))]
    starts = [0, *stops[:-1]]
    assert any(stop - start > 1 for start, stop in zip(starts, stops, strict=True)), "this vocabulary joins no letters"
    for first in range(len(CHINESE)):
        for last in range(first + 1, len(CHINESE) + 1):
            positions = token_spans(clip, CHINESE, [CHINESE[first:last]], Wan()).positions[0]
            inside = [at for at in range(len(pieces)) if starts[at] < last and stops[at] > first]
            # A mark of the beginning alone may belong to the first word.
            assert [at for at in positions if stops[at] > starts[at]] == inside


HUNYUAN_CASES = [
    ("a red ball bounces on sand", "red ball", ["red ball"]),
    ("red ball bounces", "red ball", ["red ball"]),
    ("RED ball, a red ball", "red ball", ["RED ball", "red ball"]),
    ("on the sand a ball", "ball", ["ball"]),
    ("a (red ball:1.3) on (sand)", "red ball", ["red ball"]),
    ("(red:1.3) ball on sand", "red ball", ["red ball"]),
    ("a (red:1.3)\n\nball on sand", "ball on", ["ball on"]),
    ("a (red:1.3)\nball on sand", "ball on", ["ball on"]),
    ("\na red ball", "red ball", ["red ball"]),
    ("  \n\n a red ball", "a red", ["a red"]),
    ("a user: user red ball", "user", ["user", "user"]),
    ("a ball-shaped lamp and a ball", "ball", ["ball", "ball"]),
    (r"a ball \(red\)", "red", ["red"]),
    (CHINESE, RED + BALL, [RED + BALL]),
]


@pytest.mark.parametrize("with_picture", [False, True])
@pytest.mark.parametrize(("prompt", "phrase", "expected"), HUNYUAN_CASES)
def test_hunyuan_phrases_where_its_encoder_leaves_them(hunyuan_clip, prompt, phrase, expected, with_picture) -> None:
    clip, decode = hunyuan_clip
    tokens = picture_tokens(clip, prompt, 4) if with_picture else clip.tokenize(prompt)
    context = hunyuan_context(tokens)
    spans = token_spans(clip, prompt, [phrase], HunyuanVideo(), [[context, {}]] if with_picture else None)
    kept = context[0, :, 0].long().tolist()
    assert spans.length == len(kept)
    assert sum(number < 0 for number in kept) == (144 if with_picture else 0)
    llama = tokens["llama"][0]
    ids = [None if number < 0 else llama[number][0] for number in kept]
    assert said(ids, decode, spans.positions[0]) == expected


def picture_tokens(clip, prompt, interleave):
    """Tokens as ComfyUI's TextEncodeHunyuanVideo_ImageToVideo makes them."""
    from comfy_extras.nodes_hunyuan import PROMPT_TEMPLATE_ENCODE_VIDEO_I2V

    return clip.tokenize(
        prompt,
        llama_template=PROMPT_TEMPLATE_ENCODE_VIDEO_I2V,
        image_embeds=torch.zeros(1, 576, 8),
        image_interleave=interleave,
    )


@pytest.mark.parametrize("interleave", [1, 2, 3, 7, 64, 512])
def test_hunyuan_pictures_of_every_density(hunyuan_clip, interleave) -> None:
    clip, _ = hunyuan_clip
    context = hunyuan_context(picture_tokens(clip, "a red ball", interleave))
    spans = token_spans(clip, "a red ball", ["red ball"], HunyuanVideo(), [[context, {}]])
    picture = len(range(0, 576, interleave))
    assert (context[0, :picture] < 0).all() and (context[0, picture:] >= 0).all()
    assert spans.length == context.shape[1]
    assert spans.positions == ((picture + 1, picture + 2),)


def test_hunyuan_whole_sequence(hunyuan_clip) -> None:
    """Every id of a prompt, not only the phrase's, is where the encoder leaves it."""
    clip, _ = hunyuan_clip
    for prompt, _, _ in HUNYUAN_CASES:
        tokens = clip.tokenize(prompt)
        kept = hunyuan_context(tokens)[0, :, 0].long().tolist()
        found = HunyuanVideo().text_ids(clip.tokenize(prompt, return_word_ids=True))
        expected = [tokens["llama"][0][number][0] for number in kept]
        assert found == [-1 if token >= 128000 else token for token in expected]
        assert expected[-1] == LLAMA_SPECIALS["<|eot_id|>"]


def test_hunyuan_templates_without_a_user_turn(hunyuan_clip) -> None:
    clip, _ = hunyuan_clip
    user = "<|start_header_id|>user<|end_header_id|>"
    for template in (
        "{}",
        "\n\n{}",
        f"{user}\n\n{{}}",
        f"{user}{{}}<|eot_id|>",
        f"{user}\n\n{{}}<|eot_id|>b<|eot_id|>",
        f"{user}a<|eot_id|>{user}\n\n{{}}",
    ):
        tokens = clip.tokenize("a red ball", llama_template=template)
        kept = hunyuan_context(tokens)[0, :, 0].long().tolist()
        expected = [tokens["llama"][0][number][0] for number in kept]
        assert HunyuanVideo().text_ids(tokens) == [-1 if token >= 128000 else token for token in expected]


def test_conditioning_names_the_prompts(image_clip) -> None:
    clip = image_clip[0]
    first, second = torch.randn(1, 77, 4), torch.randn(1, 77, 4)
    spans = token_spans(clip, "a red ball", ["ball"], FAMILY, [[first, {}], [second, {}]])
    assert spans.prompts == {prompt_name(first), prompt_name(second)}
    assert (spans.positions, spans.length) == (((3,),), 77)
    # Another length: another prompt, which is left alone.
    longer = torch.randn(1, 231, 4)
    assert token_spans(clip, "a red ball", ["ball"], FAMILY, [[longer, {}], [first, {}]]).prompts == {
        prompt_name(first)
    }


def test_all_words_and_those_of_the_background(image_clip, t5_clip) -> None:
    clip = image_clip[0]
    prompt = "a (red:1.3) ball on sand"
    spans = token_spans(clip, prompt, ["red ball"], FAMILY, background_phrase="on (sand:1.2)")
    assert (spans.positions, spans.background, spans.ordinary) == (((2, 3),), (4, 5), (1, 2, 3, 4, 5))
    assert spans.begin == (0,)
    # Words of the second chunk of 77 stand behind a begin of their own.
    long = token_spans(clip, "red " * 76 + "ball", ["ball"], FAMILY)
    assert long.length == 154 and long.begin == (0, 77)
    assert long.ordinary == (*range(1, 76), 78, 79) and long.positions == ((79,),)
    with pytest.raises(ValueError, match="'grass' does not occur in the prompt"):
        token_spans(clip, prompt, ["red ball"], FAMILY, background_phrase="grass")
    # Shared words are the object's.
    assert token_spans(clip, prompt, ["ball on"], FAMILY, background_phrase="on sand").background == (5,)
    other, _, family, _ = t5_clip
    found = token_spans(other, prompt, ["ball"], family, background_phrase="sand")
    assert not found.begin and found.ordinary == tuple(range(len(found.ordinary)))
    assert set(found.background) < set(found.ordinary) and not set(found.background) & set(found.positions[0])


def test_conditioning_that_repeats_the_text(image_clip) -> None:
    clip = image_clip[0]
    text = torch.randn(1, 77, 4)
    twice = torch.cat([text, text], dim=1)
    spans = token_spans(clip, "a red ball", ["ball"], FAMILY, [[twice, {}]])
    assert spans.prompts == {prompt_name(twice)}
    assert spans.repeated(154).positions == ((3, 80),)
    assert spans.repeated(154).ordinary == (1, 2, 3, 78, 79, 80)


def test_conditioning_without_its_padding(t5_clip) -> None:
    clip, _, family, length = t5_clip
    words = len([token for token in ids_of(clip, "a red ball", "t5xxl") if token > 1])
    spans = token_spans(clip, "a red ball", ["red ball"], family, [[torch.randn(1, words + 1, 4), {}]])
    assert spans.length == words + 1
    assert spans.positions == ((words - 2, words - 1),)
    assert spans.repeated(words + 1).positions == spans.positions


@pytest.mark.parametrize("length", [0, 75, 78, 154, 231])
def test_conditioning_of_another_prompt(image_clip, length) -> None:
    clip = image_clip[0]
    conditioning = [[torch.randn(1, length, 4), {}]] if length else []
    message = (
        f"conditioning has {length or 'no'} text tokens, which the prompt '(red )+.*' with its 77 cannot have made"
    )
    with pytest.raises(ValueError, match=message):
        token_spans(clip, "red " * 75, ["red"], FAMILY, conditioning)


def test_hunyuan_conditioning_of_another_prompt(hunyuan_clip) -> None:
    clip, _ = hunyuan_clip
    other = hunyuan_context(clip.tokenize("a red ball bounces"))
    for context in (other[:, :-1], torch.cat([other] * 40, dim=1)):
        with pytest.raises(
            ValueError, match=f"conditioning has {context.shape[1]} text tokens.*'a red ball on the sand'"
        ):
            token_spans(clip, "a red ball on the sand", ["ball"], HunyuanVideo(), [[context, {}]])


def test_bad_input_is_said_clearly(image_clip, t5_clip) -> None:
    clip = image_clip[0]
    with pytest.raises(
        ValueError, match=r"'green ball' does not occur .* words are 'a', 'red', 'ball', ',', 'sand'; use words"
    ):
        token_spans(clip, "a (red:1.3) ball, (sand)", ["red", "green ball"], FAMILY)
    # Weights are no words.
    with pytest.raises(ValueError, match="'1.3' does not occur in the prompt 'a red ball'"):
        token_spans(clip, "a (red:1.3) ball", ["1.3"], FAMILY)
    with pytest.raises(ValueError, match="the phrase '' has no words"):
        token_spans(clip, "a red ball", [""], FAMILY)
    with pytest.raises(ValueError, match=r"the prompt is empty, so 'ball' cannot be found"):
        token_spans(clip, " () ", ["ball"], FAMILY)
    with pytest.raises(ValueError, match="makes tokens for .*, but HunyuanVideo reads llama; connect the CLIP"):
        token_spans(clip, "a red ball", ["ball"], HunyuanVideo())
    with pytest.raises(ValueError, match="makes tokens for t5xxl, but Wan.* reads umt5xxl; connect the CLIP"):
        token_spans(t5_clip[0], "a red ball", ["ball"], Wan())
    with pytest.raises(ValueError, match="Stable Video Diffusion reads no text at all"):
        token_spans(clip, "a red ball", ["ball"], StableVideoDiffusion())
    assert token_spans(clip, "a red ball", [], FAMILY).positions == ()


def test_both_routes_say_the_same(tiny_folder, native) -> None:
    from mask_guided_video.video_models.toybox import load_toybox

    alone, clip = load_toybox(folder=tiny_folder), native[1]

    def outcomes(prompt, phrases):
        for find in (lambda: alone.token_spans(prompt, phrases), lambda: token_spans(clip, prompt, phrases, LaVie())):
            try:
                yield find()
            except ValueError as error:
                yield str(error)

    long = "red " * 22 + "blue ball"
    found = {
        (prompt, phrase): tuple(outcomes(prompt, [phrase]))
        for prompt, phrase in [
            *[
                ("a red ball on sand", phrase)
                for phrase in ("red ball", "Sand", "ed", "red  ball", "ball on", "red, ball")
            ],
            *[
                ("a red-ball, and a squareball", phrase)
                for phrase in ("ball", "square", "red", "red-ball", "squareball")
            ],
            *[("a giraffe and a zebra", phrase) for phrase in ("giraffe", "zebra", "lion", "", "a")],
            *[(long, phrase) for phrase in ("blue", "ball", "blue ball", "red blue")],
            *[("", "ball"), (" ", "ball")],
        ]
    }
    assert all(first == second for first, second in found.values())
    assert found["a red ball on sand", "Sand"][0].positions == ((4,),)
    assert "'ed' does not occur" in found["a red ball on sand", "ed"][0]
    assert found["a red-ball, and a squareball", "ball"][0].positions == ((3,),)
    assert found["a giraffe and a zebra", "zebra"][0].positions == ((4,),)
    assert found[long, "blue"][0].positions == ((22,),)
    assert "'blue ball' is in the prompt but has no tokens of its own among the 23" in found[long, "blue ball"][0]
