"""A share of attention as strength, on tiny models of ComfyUI: seen in their probabilities, at any scale of queries.

Where tokens stand is said by ``dense_reference``, and what the queries of an object look at is read off the attention
itself: its values are replaced by what names each key, so that what comes back are the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dense_reference import CALLS, objects_in_tokens
from family_rows import rows
from native_guides import POSITIONS, first_predictions, left_alone, masks_of, patched, spans_of
from native_models import BUILDERS, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance.attention_share import ShareGoal
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

WITH_WORDS = [name for name in sorted(BUILDERS) if CALLS[name].has_words]
# With calls in which the whole film asks.
AMONG_FILM = [
    name for name in sorted(BUILDERS) if any(call[0] == "S" and ":" not in call for call in CALLS[name].order.split())
]
# The ones that people use most, and one of each way to call attention.
QUICK = ("wan", "ltxav_23", "minimax_h3", "hunyuan", "sd15")
SCALES = (0.25, 1.0, 4.0, 16.0)
# Low enough that cells which two objects share can give it to both.
SHARE = 0.45
# Of the share that is wanted; of soft masks among the film the closeness of keys is counted in steps.
ALLOWED = 0.02


class SharesSeen:
    """What the objects' queries of the positive prompt look at, call by call.

    Args:
        name: of the tiny model.
        scale: factor on all queries.
        guide: whose objects are meant.
        kinds: of calls: of those with words what the words get, of others what the object itself gets.
    """

    def __init__(self, name: str, scale: float, guide: Guide, kinds: str) -> None:
        self.name, self.scale, self.guide, self.kinds = name, scale, guide, kinds
        # Of other calls nothing is known, and no patch is asked.
        self.order = [call for call in CALLS[name].each if call[0] != "-"]
        self.count = self.model_calls = 0
        self.chunks: list[int] = []
        #: (kind of call, object, share of each head) of every call with queries of the object.
        self.found: list[tuple[str, int, Tensor]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> SharesSeen:
        return self

    def hang(self, patcher: Any, patches: Sequence[Any]) -> Any:
        """A clone of the model with the patches, and this one around them."""
        watched = install_patches(patcher, [self.watch, *patches])
        watched.set_model_unet_function_wrapper(self.call_model)
        return watched

    def call_model(self, apply_model: Any, args: dict[str, Any]) -> Tensor:
        """One call of the model: note what is in its batch."""
        self.chunks = args["cond_or_uncond"]
        self.count = 0
        self.model_calls += 1
        out = apply_model(args["input"], args["timestep"], **args["c"])
        assert self.count == len(self.order), f"{self.count} attention calls, not {len(self.order)}"
        return out

    def watch(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        """One attention call."""
        call = self.order[self.count]
        self.count += 1
        q = q * self.scale
        # Calls in which one frame asks apart are the film's too, but their queries are not all of it.
        if call[0] in self.kinds and ":" not in call and 0 in self.chunks and not self._is_full:
            self._note(call, self._probabilities(attend, q, k, v, site))
        return attend(q, k, v, site)

    @property
    def _is_full(self) -> bool:
        """Whether the positive prompt was seen in all calls of a kind."""
        wanted = sum(call[0] in self.kinds and ":" not in call for call in self.order)
        return len(self.found) >= wanted * len(POSITIONS)

    @staticmethod
    def _probabilities(attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        """[B, heads, Lq, Lk]: values that name a few keys at a time bring their probabilities back."""
        length, width = k.shape[2], v.shape[3]
        parts = []
        for first in range(0, length, width):
            names = torch.zeros(length, width, dtype=v.dtype)
            last = min(first + width, length)
            names[torch.arange(first, last), torch.arange(last - first)] = 1.0
            parts.append(attend(q, k, names.expand_as(v).contiguous(), site)[..., : last - first])
        return torch.cat(parts, dim=3)

    def _note(self, call: str, shares: Tensor) -> None:
        """Of [B, heads, Lq, Lk] of a call: what an object has of the attention on all words, or on the whole film."""
        calls = CALLS[self.name]
        level, chunk = int(call[1]), self.chunks.index(0)
        objects, present = objects_in_tokens(self.guide, calls, tiny(self.name).latents[-2:], level)
        rows_of_chunk = shares.shape[0] // len(self.chunks)
        own = shares[chunk * rows_of_chunk : (chunk + 1) * rows_of_chunk]
        for number, positions in enumerate(POSITIONS):
            weights = (objects[number] * present[number][:, None, None]).flatten(1)
            inside = weights >= weights.max() / 2.0
            if call[0] == "S":
                wanted = objects[number].flatten(1) >= 0.5
                first = calls.video_start("S")
            else:
                wanted = torch.zeros(len(inside), calls.text, dtype=torch.bool)
                wanted[:, list(positions)] = True
                first = calls.text_start(level) if call[0] == "J" else 0
            if not calls.per_frame:
                inside, queries = inside.flatten()[None], calls.video_start(call[0])
                wanted = wanted.flatten()[None] if call[0] == "S" else wanted[:1]
            else:
                queries = 0
            found = []
            for row in range(len(inside)):
                keys = own[row][..., first : first + wanted.shape[1]]
                among = keys / keys.sum(dim=-1, keepdim=True)
                asking = inside[row].nonzero()[:, 0] + queries
                found.append(among[:, asking][..., wanted[row]].sum(dim=-1))
            self.found.append((call, number, torch.cat(found, dim=1).mean(dim=1)))


def guide_of(name: str, share: float | None, gain: float = 3.0) -> Guide:
    mode = make_mode("cross_text", gain=gain, start_percent=0.0, end_percent=1.0)
    goal = None if share is None else ShareGoal(share)
    return Guide(masks_of(tiny(name)), mode, ("red ball", "cube"), goal=goal)


def shares_of(name: str, guide: Guide, scale: float, kinds: str = "CJ") -> list[Tensor]:
    """The share of every head, by object and call."""
    model = tiny(name)
    seen = SharesSeen(name, scale, guide, kinds)
    patch = GuidePatch(guide, spans_of(name) if guide.phrases else None)
    first_predictions(model, seen.hang(model.patcher, [patch]))
    assert seen.found
    return [share for _, _, share in seen.found]


def assert_reached(free: list[Tensor], found: list[Tensor], allowed: float) -> None:
    """Every head has the share, and in the first call none has more but those that had about as much without guidance.

    What heads of later calls had is not known: the blocks before them are guided.
    """
    least, most = SHARE * (1.0 - allowed), SHARE * (1.0 + allowed)
    assert float(torch.cat(found).min()) > least
    first = slice(0, len(POSITIONS))
    assert bool((torch.cat(found[first]) < most)[torch.cat(free[first]) < 0.75 * SHARE].all())
    assert float((torch.cat(found) < most).float().mean()) > 0.5


@pytest.mark.parametrize("name", rows(WITH_WORDS, QUICK))
def test_words_get_their_share_at_every_scale_of_the_queries(name: str) -> None:
    fixed = []
    for scale in SCALES:
        free = shares_of(name, guide_of(name, 0.0), scale)
        found = shares_of(name, guide_of(name, SHARE), scale)
        assert_reached(free, found, ALLOWED)
        fixed.append(float(torch.cat(shares_of(name, guide_of(name, None), scale)).std() / SHARE))
    # A gain is another share in every head and at every scale.
    assert max(fixed) > ALLOWED


@pytest.mark.parametrize("name", rows(WITH_WORDS, QUICK))
def test_a_share_that_is_there_already_changes_no_bit(name: str) -> None:
    model = tiny(name)
    plain = sample(model)
    assert torch.equal(sample(model, patched(model, guide_of(name, 1e-6), spans_of(name))), plain)
    assert torch.equal(sample(model, patched(model, guide_of(name, 0.0), spans_of(name))), plain)
    guided = sample(model, patched(model, guide_of(name, SHARE), spans_of(name)))
    assert bool(torch.isfinite(guided).all()) and not torch.equal(guided, plain)


@pytest.mark.parametrize("name", rows([name for name in WITH_WORDS if tiny(name).cfg > 1.0], QUICK))
def test_unconditional_rows_are_left_alone(name: str) -> None:
    model = tiny(name)
    plain = first_predictions(model, model.patcher)
    guided = first_predictions(model, patched(model, guide_of(name, SHARE), spans_of(name)))
    assert left_alone(name, guided["negative"], plain["negative"])
    assert not torch.equal(guided["positive"], plain["positive"])


@pytest.mark.parametrize("name", rows(AMONG_FILM, QUICK))
def test_regions_get_their_share_of_the_film(name: str) -> None:
    mode = make_mode("separate", end_percent=1.0)
    free, found = (
        shares_of(name, Guide(masks_of(tiny(name)), mode, goal=ShareGoal(share)), 1.0, kinds="S")
        for share in (0.0, SHARE)
    )
    assert_reached(free, found, 5 * ALLOWED)
