"""The worked example in the docstring of each mode: two queries, three keys, and the numbers that the mode makes of
them.

The picture has two cells, of which the object takes the first. Keys are these two and the object's word or, where a
mode acts among words only, the words of the object, of the background and of neither.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.guidance.call import CallTensors, ModeCall
from mask_guided_video.attention_patches.guidance.edits import EditPart
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, make_mode
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.channels import MAX_BIAS
from mask_guided_video.attention_patches.site import AttentionSite, BatchRows, Span

# Among words: of the object, of the background, of neither.
WORDS = TextSpans(("ball",), ((0,),), 3, ordinary=(0, 1, 2), background=(1,))
WORD = TextSpans(("ball",), ((0,),), 1, ordinary=(0,))
AMONG_WORDS = ("direct_a_video", "motionbooth")
# Logits of both queries where a mode changes what is there; their examples show logits or shares before and after.
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
CONSTANTS = {"dmg": {"gamma_self": 4.0}}


def printed(mode: str) -> list[list[float]]:
    """The rows of the example in a mode's docstring; x stands for a key that is closed."""
    text = MODES[mode].__doc__ or ""
    rows = re.findall(r"query [12]((?: +(?:-?[\d.]+|x))+)", text)
    return [[-MAX_BIAS if entry == "x" else float(entry) for entry in row.split()] for row in rows]


def call_of(mode: str) -> ModeCall:
    words = mode in AMONG_WORDS
    site = AttentionSite(
        **{"kind": "cross" if words else "joint", "block": "mid.0", "index": 0, "total": 1, "level": 1},
        **{"grid": (1, 1, 2), "frames": (0,), "clip_frames": 1, "video": Span(0, 2), "rows": BatchRows()},
        **{"text": Span(0, 3) if words else Span(2, 3), "progress": 0.0, "sigma": 1.0},
    )
    rule = make_mode(mode, **CONSTANTS.get(mode, {}))
    patch = GuidePatch(Guide(torch.tensor([[[[1.0, 0.0]]]]), rule), WORDS if words else WORD)
    sizes = CallTensors(2 if words else 3, 3, 8, torch.float32, torch.device("cpu"))
    return patch._call(site.layout, rule.phase(site), sizes, knows_words=True, filled=False)


def made(mode: str) -> list[list[float]]:
    """What the mode's code makes: what is added or, where logits or shares are changed, those before and after."""
    rule, call = make_mode(mode, **CONSTANTS.get(mode, {})), call_of(mode)
    tables, edit = rule.tables(call), rule.edit(call)
    if tables is not None:
        return (tables.query[0, :2] @ tables.key[0].T).clamp(min=-MAX_BIAS).tolist()
    assert edit is not None

    def at(values: Tensor, change: object) -> Tensor:
        peaks = values.amax().view(1, 1, 1, 1)
        part = EditPart(torch.zeros(1, dtype=torch.long), slice(0, 2), peaks)
        return values if change is None else change(values[None, None], part)[0, 0]

    logits = at(LOGITS, edit.logits)
    if edit.probabilities is None:
        return torch.cat((LOGITS, logits), dim=1).tolist()
    shares = at(logits.softmax(dim=1), edit.probabilities)
    return torch.cat((LOGITS.softmax(dim=1), shares), dim=1).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_the_printed_numbers_are_what_the_code_makes(mode: str) -> None:
    rows = printed(mode)
    assert len(rows) == 2 and all(len(row) in (3, 6) for row in rows), "each mode shows two queries and three keys"
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(made(mode)), atol=0.051, rtol=0.0)
