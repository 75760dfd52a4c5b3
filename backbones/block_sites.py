"""Say for the attention calls inside of one transformer block which site each of them is.

ComfyUI's video transformers hand one set of options to all attention calls of a block, and not all say which block it
is, nor is one number always one block (VACE's own blocks and a pose branch bear those of others). So every block is
entered through a marker in ``patches_replace["dit"]``, which leaves a
:class:`SiteSequence` in the block's options. Markers are put around whatever another pack has put there, at each call
of the model, so that it does not matter who came first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from ..attention_patches.site import SITE_KEY, AttentionKind, AttentionSite, CallSize, Span
from .family import BlockPlace, Family, ModelCall, TokenGrid, places

BlockKey: TypeAlias = tuple[str, int]
# Where the sequences of the model call in flight are in ``transformer_options``.
SEQUENCES_KEY = "attention_sites_of_blocks"
# Where the result of the block before is; see ``_hand_over``.
RESULTS_KEY = "results_of_blocks"


@dataclass(frozen=True)
class ExpectedCall:
    """An attention call that a block makes.

    Attributes:
        queries, keys: lengths of its sequences.
        site: where it stands; None for calls that are left alone, as those with image tokens.
        block: the number that the host gives the block, in a sequence of several blocks.
        width: channels of all heads of a query, where a block makes calls of several widths; None is any.
    """

    queries: int
    keys: int
    site: AttentionSite | None
    block: int | None = None
    width: int | None = None

    def is_like(self, size: CallSize) -> bool:
        """Say whether a call of this size may be this one."""
        same_width = self.width is None or self.width == size.width
        return same_width and (self.queries, self.keys) == (size.queries, size.keys)


class SiteSequence:
    """Finds sites by the order and the sizes of the calls that a block makes.

    Both are needed: text may be as long as the video, and another pack may leave a call out. Where the calls of several
    blocks are expected and the host says which one is running, only that block's are considered: another pack may leave
    out a whole block, or run one twice.

    Args:
        expected: the calls in their order.
        call: of the model; it hears of what kinds these calls are, and which of them are found.
    """

    def __init__(self, expected: Sequence[ExpectedCall], call: ModelCall) -> None:
        self._expected = expected
        self._found = call.found
        self._next = 0
        for kind in {wanted.site.kind for wanted in expected if wanted.site is not None}:
            call.expected(kind)

    def __call__(self, size: CallSize, options: Mapping[str, Any]) -> AttentionSite | None:
        """Return the site of a call of this size, or None when it is none of the expected ones.

        Args:
            size: of the call.
            options: ``transformer_options`` of the call; some hosts say in ``block_index`` which block is running.
        """
        for index in self._indices(options.get("block_index")):
            call = self._expected[index]
            if call.is_like(size):
                self._next = index + 1
                if call.site is not None:
                    self._found(call.site.kind)
                return call.site
        return None

    def _indices(self, block: int | None) -> Sequence[int]:
        """The expected calls that the next one may be."""
        own = [index for index, call in enumerate(self._expected) if call.block is not None and call.block == block]
        if not own:
            return range(self._next, len(self._expected))
        # Past its own calls, or not yet at them, a block begins with its first one.
        return range(self._next if own[0] <= self._next <= own[-1] else own[0], own[-1] + 1)


def calls_of_blocks(
    family: Family, call: ModelCall, grid: TokenGrid, blocks: Sequence[tuple[str, Sequence[AttentionKind]]]
) -> list[ExpectedCall]:
    """The calls of all blocks of a network in which the video is alone in its sequence, and the text in its own.

    Args:
        family: of the network.
        call: of it.
        grid: of the video tokens.
        blocks: for each block, in their order, its name and the kinds of its calls: ``self`` and ``cross``.
    """
    video, text = Span(0, grid.tokens), Span(0, call.text_length)
    expected: list[ExpectedCall] = []
    numbered = zip(places([name for name, _ in blocks]), blocks, strict=True)
    for number, (place, (_, kinds)) in enumerate(numbered):
        for kind in kinds:
            cross = kind == "cross"
            site = family.site(call, grid, kind, place, video=video, text=text if cross else None)
            expected.append(ExpectedCall(grid.tokens, text.stop if cross else grid.tokens, site, number))
    return expected


# Makes the sequence of a block from the arguments that the block is called with.
SequenceMaker: TypeAlias = Callable[[Mapping[str, Any]], SiteSequence]


class BlockMarkers:
    """The markers of one patched model, each made once: a compiled model is compiled anew for other functions."""

    def __init__(self) -> None:
        self._made: dict[tuple[BlockKey, Any], Callable[..., Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockMarkers:
        return self

    def hang(self, options: dict[str, Any], makers: Mapping[BlockKey, SequenceMaker]) -> None:
        """Put markers around the blocks of a transformer.

        Args:
            options: ``transformer_options`` of one model call, changed in place; the dicts in it are not.
            makers: for each block what makes its sequence.
        """
        replaced = options.get("patches_replace", {})
        blocks = replaced.get("dit", {})
        marked = {key: self._marker(key, blocks.get(key)) for key in makers}
        options["patches_replace"] = {**replaced, "dit": {**blocks, **marked}}
        options[SEQUENCES_KEY] = makers
        options[RESULTS_KEY] = []

    def _marker(self, key: BlockKey, previous: Callable[..., Any] | None) -> Callable[..., Any]:
        marker = self._made.get((key, previous))
        if marker is None:
            marker = self._made[key, previous] = _marker(key, previous)
        return marker

    def release(self) -> None:
        """Drop all markers; they hold on to other packs' functions."""
        self._made = {}


def _marker(key: BlockKey, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    """Make the function for ``patches_replace["dit"][key]`` that calls ``previous`` around the marked block."""

    # The block itself is compiled; the marking is not.
    @torch.compiler.disable(recursive=False)
    def marker(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        block = extra["original_block"]
        results = args["transformer_options"][RESULTS_KEY]
        # The host has long read it.
        while results:
            results.pop().clear()

        @torch.compiler.disable(recursive=False)
        def marked_block(block_args: dict[str, Any]) -> Any:
            options = block_args.get("transformer_options") or args["transformer_options"]
            sequence = options[SEQUENCES_KEY][key](block_args)
            return block({**block_args, "transformer_options": {**options, SITE_KEY: sequence}})

        if previous is None:
            return _hand_over(marked_block(args), results)
        return _hand_over(previous(args, {**extra, "original_block": marked_block}), results)

    return marker


def _hand_over(result: Any, results: list[dict[str, Any]]) -> Any:
    """Give the host a dict of its own, to be emptied when the next block begins.

    Until it gets the next one the host holds on to the dict: in HunyuanVideo the video would be kept twice while the
    first of the single blocks runs. The block's own dict stays as it is, for another pack may keep that.
    """
    if not isinstance(result, dict):
        return result
    handed = dict(result)
    results.append(handed)
    return handed


class MarkedFamily(Family):
    """A family whose blocks ComfyUI lets packs wrap."""

    def blocks(self, network: Any) -> list[tuple[str, BlockKey]]:
        """Our names and ComfyUI's keys of all blocks, in the order of the forward pass."""
        return [(name, ("double_block", index)) for index, name in enumerate(super().block_names(network))]

    def block_names(self, network: Any) -> list[str]:
        return [name for name, _ in self.blocks(network)]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: BlockMarkers) -> None:
        blocks = self.blocks(network)
        numbered = zip(blocks, places([name for name, _ in blocks]), strict=True)
        markers.hang(options, {key: partial(self.sequence, network, call, place) for (_, key), place in numbered})

    @abstractmethod
    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        """Make the sites of a block.

        Args:
            network: the diffusion model.
            call: of it.
            place: of the block.
            args: what the host calls the block with: ``img`` [B, L, C], ``txt`` and so on.
        """
