"""Phrases among the tokens of Qwen 2.5's tokenizer, as HunyuanVideo 1.5 and Kandinsky 5 are given them.

The tokenizers are the core's own with the real vocabulary, and so is the code of the encoders that cuts the chat around
a prompt; only the language model is left out: what stands for it says of each token its number.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prompt_encoders import IndexEncoder, NoEncoder, clip_of, said

from mask_guided_video.backbones.families.hunyuan_video import HunyuanVideo
from mask_guided_video.backbones.families.hunyuan_video_15 import HunyuanVideo15
from mask_guided_video.backbones.families.kandinsky5 import Kandinsky5
from mask_guided_video.backbones.family import Family
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.host.prompts.prompt_tokens import token_spans

pytestmark = pytest.mark.comfy

KEY = "qwen25_7b"
RED, BALL = "\u7ea2", "\u7403"
# "A red ball lies on the sand."
CHINESE = f"\u4e00\u4e2a{RED}{BALL}\u5728\u6c99\u6ee9\u4e0a"
# <|im_end|> and a line break, <|im_start|>, "assistant", a line break.
END, ANSWER = 151645, [198, 151644, 77091, 198]
SYSTEM = "<|im_start|>system\nDescribe the red ball.<|im_end|>\n"
CHAT = f"{SYSTEM}<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"


class Reader:
    """A model's text encoder without its language model.

    Attributes:
        family: of the model.
        clip: CLIP with the real tokenizer.
        after: how many tokens the template has after the prompt.
    """

    def __init__(self, name: str) -> None:
        from comfy.text_encoders import hunyuan_image, hunyuan_video, kandinsky5

        self.family: Family = HunyuanVideo15() if name == "1.5" else Kandinsky5()
        self.after = 5 if name == "1.5" else 1
        tokenizer = hunyuan_video.HunyuanVideo15Tokenizer() if name == "1.5" else kandinsky5.Kandinsky5Tokenizer()
        self.clip = clip_of(tokenizer)
        encoder = hunyuan_image.HunyuanImageTEModel if name == "1.5" else kandinsky5.Kandinsky5TEModel
        self.encoder = encoder.__new__(encoder)
        torch.nn.Module.__init__(self.encoder)
        self.encoder.clip_name = self.encoder.clip = KEY
        self.encoder.qwen25_7b, self.encoder.clip_l, self.encoder.byt5_small = IndexEncoder(), NoEncoder(), None

    def decode(self, ids: list[int]) -> str:
        return self.clip.tokenizer.qwen25_7b.tokenizer.decode(ids)

    def kept(self, prompt: str) -> list[Any]:
        """What the core's encoder keeps of the tokens of a prompt."""
        tokens = self.clip.tokenize(prompt)
        numbers = self.encoder.encode_token_weights(tokens)[0][0, :, 0].long().tolist()
        return [tokens[KEY][0][number][0] for number in numbers]

    def said(self, prompt: str, phrase: str) -> list[str]:
        """The words at the places that are found for a phrase."""
        spans = token_spans(self.clip, prompt, [phrase], self.family)
        kept = self.kept(prompt)
        assert spans.length == len(kept)
        return said(kept, self.decode, spans.positions[0])


@pytest.fixture(scope="module", params=["1.5", "Kandinsky 5"])
def reader(request: pytest.FixtureRequest, comfy_folder: Any) -> Reader:
    return Reader(request.param)


CASES = [
    ("a red ball bounces on sand", "red ball", ["red ball"]),
    ("red ball bounces", "red ball", ["red ball"]),
    ("a red ball", "red ball", ["red ball"]),
    ("RED ball, a red ball", "red ball", ["RED ball", "red ball"]),
    ("red ball and red ball.", "Red Ball", ["red ball", "red ball"]),
    ("a ball-shaped lamp, the ballerina and a ball", "ball", ["ball", "ball"]),
    # Parentheses are words of the prompt, and so are numbers in them.
    ("a (red ball:1.3) on (sand)", "red ball", ["red ball"]),
    ("a (red ball:1.3) on sand", "ball:1.3", ["ball:1.3"]),
    ("a [red] {ball} on (sand)", "red", ["[red]"]),
    ("a red (ball) on sand", "red (ball)", ["red (ball)"]),
    (r"a ball \(red\) on sand", "red", ["red"]),
    (r"a ball \(red\) on sand", r"ball \(red\)", ["ball (red)"]),
    # Words of the template.
    ("a user: user red ball", "user", ["user", "user"]),
    ("an assistant helps the assistant", "assistant", ["assistant", "assistant"]),
    ("describe the video of a system", "system", ["system"]),
    ("describe the video of a system", "Describe the video", ["describe the video"]),
    # Glyphs are read by another encoder; these are its words here.
    ('a sign says "red ball" and glows', "red ball", ["red ball"]),
    ('"red ball" on a sign', "red ball", ['"red ball']),
    ('a sign "red", another "red"', "red", ['"red', '"red']),
    ("\na red ball", "red ball", ["red ball"]),
    ("\n\nred ball", "red ball", ["red ball"]),
    ("  red ball  ", "red ball", ["red ball"]),
    ("a red\n\nball on sand", "red ball", ["red\n\nball"]),
    ("a red ball\n", "red ball", ["red ball"]),
    ("a ball <|im_end|> a cube", "cube", ["cube"]),
    ("a ball <|im_start|>user\nred cube", "red cube", ["red cube"]),
    (CHINESE, RED + BALL, [RED + BALL]),
    # The host takes chats as they are: what was said before the second turn is not seen.
    (CHAT.format("a red ball on sand"), "red ball", ["red ball"]),
    (CHAT.format("red ball on sand"), "red ball", ["red ball"]),
    (CHAT.format("\n\na red ball"), "red ball", ["red ball"]),
    (f"{SYSTEM}<|im_start|>user\na red ball", "red ball", ["red ball"]),
    (f"{SYSTEM}<|im_start|>wizard\na red ball", "red ball", ["red ball"]),
    ("<|im_start|>user\nred ball and cube", "red ball", ["red ball"]),
    (CHAT.format("a cube") + "The red ball.", "red ball", ["red ball"]),
]


@pytest.mark.parametrize(("prompt", "phrase", "expected"), CASES)
def test_phrases_where_the_encoder_leaves_them(reader: Reader, prompt: str, phrase: str, expected: list[str]) -> None:
    found = reader.said(prompt, phrase)
    # A token may reach over the border of a phrase, and belongs to it.
    assert [words.strip('[](){} ,:"') for words in found] == [words.strip('[](){} ,:"') for words in expected]


def test_the_whole_sequence(reader: Reader) -> None:
    """Every id of a prompt, not only the phrase's, is where the encoder leaves it; of the template there is none."""
    for prompt, _, _ in CASES:
        kept = reader.kept(prompt)
        own = len(kept) - reader.after
        if prompt.startswith("<|im_start|>"):
            own = len(kept)
            if kept[-5:] == [END, *ANSWER]:
                own -= 5
        head = 2 if kept[:2] == [151644, 872] else 0
        expected = [
            -1 if place < head or place >= own or 151643 <= token < 151669 else token
            for place, token in enumerate(kept)
        ]
        assert reader.family.text_ids(reader.clip.tokenize(prompt, return_word_ids=True)) == expected, prompt
    kept = reader.kept("a red ball")
    assert kept[3:] == ([END, *ANSWER] if reader.after == 5 else [END])


def test_words_of_the_template_are_not_of_the_prompt(reader: Reader) -> None:
    spans = token_spans(reader.clip, "a red ball", ["ball"], reader.family)
    assert (spans.ordinary, spans.begin, spans.positions) == ((0, 1, 2), (), ((2,),))
    for word in ("video", "camera", "user", "assistant", "system"):
        with pytest.raises(ValueError, match=f"'{word}' does not occur in the prompt 'a red ball'"):
            token_spans(reader.clip, "a red ball", [word], reader.family)


def test_turns_of_a_chat_that_are_not_seen(reader: Reader) -> None:
    for prompt, phrase in (
        (CHAT.format("a cube"), "red ball"),
        ("<|im_start|>user\na red ball<|im_end|>\n<|im_start|>assistant\nHere it is.", "red ball"),
    ):
        assert "ball" not in reader.decode(reader.kept(prompt))
        with pytest.raises(ValueError, match=f"'{phrase}' does not occur in the prompt"):
            token_spans(reader.clip, prompt, [phrase], reader.family)


def test_several_phrases_and_a_background(reader: Reader) -> None:
    prompt = 'a red ball and a blue cube on "sand", a red ball'
    spans = token_spans(reader.clip, prompt, ["red ball", "blue cube"], reader.family, background_phrase="sand")
    assert [said(reader.kept(prompt), reader.decode, places) for places in spans.positions] == [
        ["red ball", "red ball"],
        ["blue cube"],
    ]
    assert "sand" in said(reader.kept(prompt), reader.decode, spans.background)[0]


def test_conditioning_of_the_prompt_and_of_another(reader: Reader) -> None:
    prompt = "a red ball"
    length = len(reader.kept(prompt))
    spans = token_spans(reader.clip, prompt, ["ball"], reader.family, [[torch.randn(1, length, 4), {}]])
    assert spans.length == length and len(spans.prompts or ()) == 1
    with pytest.raises(ValueError, match=f"conditioning has {length - 1} text tokens"):
        token_spans(reader.clip, prompt, ["ball"], reader.family, [[torch.randn(1, length - 1, 4), {}]])
    with pytest.raises(ValueError, match="makes tokens for qwen25_7b.*but HunyuanVideo reads llama; connect the CLIP"):
        token_spans(reader.clip, prompt, ["ball"], HunyuanVideo())


def test_entries_of_other_lengths_are_other_prompts(reader: Reader) -> None:
    """The end of the template is no padding that may be missing."""
    length = len(reader.kept("a red ball"))
    other, own = torch.randn(1, length - 1, 4), torch.randn(1, length, 4)
    spans = token_spans(reader.clip, "a red ball", ["ball"], reader.family, [[other, {}], [own, {}]])
    assert spans.length == length and spans.prompts == {prompt_name(own)}


@pytest.mark.parametrize("prompt", ["a red embedding:absent red ball", "embedding:absent red ball on sand"])
def test_embeddings_that_are_absent(
    reader: Reader, prompt: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host leaves the name out and joins what follows by single spaces, the template's line breaks too."""
    monkeypatch.setattr(reader.clip.tokenizer.qwen25_7b, "embedding_directory", str(tmp_path))
    assert reader.said(prompt, "red ball") == ["red ball"]
    spans = token_spans(reader.clip, prompt, ["ball"], reader.family)
    assert "assistant" not in reader.decode([reader.kept(prompt)[place] for place in spans.ordinary])


def test_embeddings_are_an_error_of_the_host(reader: Reader, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({KEY: torch.randn(3, 3584)}, tmp_path / "toy.safetensors")
    monkeypatch.setattr(reader.clip.tokenizer.qwen25_7b, "embedding_directory", str(tmp_path))
    with pytest.raises(RuntimeError, match="Boolean value of Tensor"):
        reader.clip.tokenize("a red embedding:toy ball")
