"""The text of models that read their prompt through Qwen 2.5 VL, without what the host writes around it.

The host writes the prompt into a chat: instructions of the system, the user's turn with the prompt in it, for some
models the beginning of an answer. The model is given what follows the head of the second turn, the words that end the
chat included. All tokens have the same word id, those of the template too, so that they are told apart by their ids.
A prompt that begins with ``<|im_start|>`` is a chat of its own, which the host takes as it is.

Source: Comfy-Org/ComfyUI, comfy/text_encoders/qwen_image.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..prompt_text.token_places import NOT_OF_PROMPT

# Under this name ComfyUI's tokenizers return Qwen's tokens.
QWEN = "qwen25_7b"
TURN_MARK = "<|im_start|>"
USER_HEAD = "<|im_start|>user\n"
# Token ids: <|im_start|> and <|im_end|>, the names of those who speak, a line break, a space.
TURN, END_OF_TURN = 151644, 151645
USER, ASSISTANT = 872, 77091
NEW_LINE, SPACE = 198, 220
# All tokens of control; what a user writes in words is below.
CONTROL_TOKENS = range(151643, 151669)
# What the template lays around the prompt at the end of the chat.
AFTER_PROMPT = frozenset({TURN, ASSISTANT, NEW_LINE, SPACE})


def kept_ids(ids: Sequence[int]) -> list[int]:
    """Token ids that the model sees of a chat, ``NOT_OF_PROMPT`` for those of the template and of control.

    Args:
        ids: of the whole chat, in one row.
    """
    turns = [at for at, token in enumerate(ids) if token == TURN][:2]
    start = turns[-1] if turns else len(ids) - 1
    head = 0
    if list(ids[start : start + 2]) == [TURN, USER]:
        # The head stays where nothing follows it, or where the prompt's own line breaks make one token with its last.
        head = 3 if ids[start + 2 : start + 3] == [NEW_LINE] else 2
        if head == 3 and len(ids) > start + 3:
            start, head = start + 3, 0
    kept = list(ids[start:])
    own = range(head, _own_length(kept))
    return [
        token if place in own and token not in CONTROL_TOKENS else NOT_OF_PROMPT for place, token in enumerate(kept)
    ]


def unseen_beginning(prompt: str) -> str:
    """The beginning of a prompt that the model never sees: of a chat, all before the words of its second turn."""
    if not prompt.startswith(TURN_MARK):
        return ""
    start = max(prompt.find(TURN_MARK, len(TURN_MARK)), 0)
    words = start + len(USER_HEAD)
    # Line breaks after it belong to the same token.
    seen = not prompt.startswith(USER_HEAD, start) or not prompt[words:].strip() or prompt[words] in "\r\n"
    return prompt[: start if seen else words]


def _own_length(kept: Sequence[int]) -> int:
    """How many of the tokens stand before the end of the chat: the last turn's, unless words follow it."""
    ends = [at for at, token in enumerate(kept) if token == END_OF_TURN]
    if ends and AFTER_PROMPT.issuperset(token for token in kept[ends[-1] + 1 :] if token != NOT_OF_PROMPT):
        return ends[-1]
    return len(kept)
