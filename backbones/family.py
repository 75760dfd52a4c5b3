"""What the pack must know of a family of video models to place attention sites in it.

One module per family implements :class:`Family`; ``registry`` lists them, ``host_hooks`` calls them. Families tell
models apart by their parts and not by their classes, so that quantised and later ones are known as well.
"""

from __future__ import annotations

import math
import numbers
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..attention_patches.latent_time import LatentTime
from ..attention_patches.site import AttentionKind, AttentionSite, BatchRows, FoldedAxis, Span
from ..prompt_text.token_places import NOT_OF_PROMPT


@dataclass(frozen=True)
class TokenGrid:
    """A grid of video tokens.

    Attributes:
        level: 0 for the finest of the model.
        frames, rows, columns: of tokens.
        extent: (rows, columns) that the picture fills; see ``AttentionSite``.
    """

    level: int
    frames: int
    rows: int
    columns: int
    extent: tuple[float, float]

    @property
    def tokens(self) -> int:
        """Tokens of the clip."""
        return self.frames * self.rows * self.columns

    @property
    def filled(self) -> tuple[float, float] | None:
        """``extent``, or None when the picture fills the grid."""
        return None if self.extent == (self.rows, self.columns) else self.extent


@dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of a diffusion model, as the host makes it.

    Attributes:
        latents: size of the video latents in flight, [B, C, T, h, w] or [B * T, C, h, w]; a context window has a part
            of the clip only.
        text_length: tokens of the text in flight, 0 without any.
        extras: the model's further inputs by name (``clip_fea``, ``keyframe_idxs`` ...).
        chunks: conditional (0) or unconditional (1), per chunk of the batch.
        prompts: see ``BatchRows``.
        frames: where the video's frames of this call stand in the whole clip.
        clip_frames: frames of the whole clip.
        leading_frames: latent frames of this call that stand before the video's, see ``Family.leading_frames``.
        progress, sigma: see ``AttentionSite``.
        expected: called with the kind of every attention call that a block is about to make and that is wanted.
        found: called with the kind of every attention call whose site is found.
        note: called with what the user must know of calls that cannot be guided, however often it happens.
    """

    latents: tuple[int, ...]
    text_length: int
    extras: Mapping[str, Any]
    chunks: tuple[int, ...]
    prompts: tuple[str, ...]
    frames: tuple[int, ...]
    clip_frames: int
    leading_frames: int
    progress: float
    sigma: float
    expected: Callable[[AttentionKind], None]
    found: Callable[[AttentionKind], None]
    note: Callable[[str], None]


@dataclass(frozen=True)
class BlockPlace:
    """Name, running index among those of its kind, and how many there are."""

    name: str
    index: int
    total: int


class Family(ABC):
    """One family of video models.

    Attributes:
        name: for messages and tables.
        latent_time: how many frames of the video each latent frame covers.
        trained_frames: latent frames of the clips that most models of the family were trained on; ``native_frames``
            looks at the model itself.
        frame_axis: of the latents: 2 in [B, C, T, h, w], 0 in [B * T, C, h, w].
        encoders: names under which ComfyUI's tokenizer returns the tokens that make the model's text sequence, most
            wanted first; empty for models without text.
        finds_sites: whether sites are found by ``prepare``; models of our own make them themselves.
        block_list: name of the list of blocks in the network.
        parts: names of all submodules that a network of the family may have at its top. A network with others is a
            model of another making, whose tokens may stand elsewhere; empty where ``fits`` knows it otherwise.
        reads_weights: whether parentheses in a prompt are weights to its text encoder, and not words.
        drops_padding: whether nodes may leave the end of a text away that is of no word, since it is padding.
        joint_text: whether text and video attend to each other in one sequence; else cross-attention reads the text.
        mixes_text: whether blocks before cross-attention let the words of a text attend to each other, so that several
            prompts in one text would not stay apart.
    """

    name: str
    latent_time: LatentTime
    trained_frames: int
    frame_axis: int = 2
    encoders: tuple[str, ...] = ()
    finds_sites: bool = True
    block_list: str = "blocks"
    parts: frozenset[str] = frozenset()
    reads_weights: bool = True
    drops_padding: bool = True
    joint_text: bool = False
    mixes_text: bool = False

    def fits(self, network: Any) -> bool:
        """Say whether a network is of this family, by its parts: all that it needs, and none that nobody knows."""
        return self.resembles(network) and not self.strange_parts(network)

    @abstractmethod
    def resembles(self, network: Any) -> bool:
        """Say whether a network is built like those of this family, whatever else it has."""

    def strange_parts(self, network: Any) -> list[str]:
        """Names of submodules at the top of a network that no model of this family has."""
        if not self.parts:
            return []
        # A compiled network holds the one that was compiled.
        network = getattr(network, "_orig_mod", network)
        return sorted(name for name, _ in network.named_children() if name not in self.parts)

    def block_names(self, network: Any) -> list[str]:
        """Names of the blocks that hold guided attention, in the order of the forward pass."""
        return [f"block.{index}" for index, _ in enumerate(children(network, self.block_list))]

    @abstractmethod
    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        """Token grids of latents of a size, finest first, without tokens that are not of the video."""

    @abstractmethod
    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: Any) -> None:
        """Leave in ``options``, this call's own, what makes every attention call find its site.

        Args:
            network: the diffusion model.
            call: what is in flight.
            options: ``transformer_options`` of this call only; changed in place.
            markers: ``BlockMarkers`` of the patched model.
        """

    def native_frames(self, network: Any) -> int:
        """How many latent frames the clips had that a model was trained on."""
        return self.trained_frames

    def film_frames(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> int:
        """How many of the latents' frames are of the video or lead it; frames that guide it may follow."""
        return latents[self.frame_axis]

    def leading_frames(self, network: Any, extras: Mapping[str, Any]) -> int:
        """How many of the latents' first frames are reference pictures and not of the video.

        Args:
            network: the diffusion model.
            extras: what the conditions of a run say of the video, as the host's nodes left it.
        """
        return 0

    def asks_by_frame(self, network: Any, extras: Mapping[str, Any]) -> bool:
        """Say whether each frame of the video runs its own self-attention; arguments as ``leading_frames``."""
        return False

    def sampler_problem(self, network: Any, sampler: Any) -> str:
        """What keeps guidance from a run, known before anything is sampled: a sentence, or empty.

        Args:
            network: the diffusion model.
            sampler: ComfyUI's ``SAMPLER`` of the run.
        """
        return ""

    def site(
        self,
        call: ModelCall,
        grid: TokenGrid,
        kind: AttentionKind,
        place: BlockPlace,
        *,
        video: Span,
        text: Span | None = None,
        folded: FoldedAxis = "none",
    ) -> AttentionSite:
        """Make the site of one attention call out of what is known of the model call.

        Args:
            call: of the model.
            grid: of the video tokens.
            kind, video, text, folded: see ``AttentionSite`` and ``BatchRows``.
            place: of the block.
        """
        sizes = {"none": 1, "frames": grid.frames, "positions": grid.rows * grid.columns}
        samples = call.latents[0] // len(call.chunks) if self.frame_axis else 1
        return AttentionSite(
            kind=kind,
            block=place.name,
            index=place.index,
            total=place.total,
            level=grid.level,
            grid=(grid.frames, grid.rows, grid.columns),
            frames=call.frames,
            clip_frames=call.clip_frames,
            video=video,
            text=text,
            rows=BatchRows(call.chunks, samples, folded, sizes[folded], call.prompts),
            progress=call.progress,
            sigma=call.sigma,
            extent=grid.filled,
            latent_time=self.latent_time,
        )

    def text_rows(self, length: int) -> int:
        """How many rows of text the blocks see of a text embedding of a length; more, where a model adds its own."""
        return length

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        """Token ids of the text sequence as the model sees it; see ``flat_ids``.

        Args:
            tokens: what ``clip.tokenize`` returned.
            length: tokens of the text embedding that was made of it, where more than these tokens may be in it; 0
                when unknown.

        Raises:
            ValueError: the tokens are those of another family's text encoder.
        """
        return self.all_text_ids(tokens)

    def unseen_beginning(self, prompt: str) -> str:
        """The beginning of a prompt that the model's blocks never see, whatever words are in it; usually empty."""
        return ""

    def all_text_ids(self, tokens: Mapping[str, Any]) -> list[int]:
        """Token ids that the family's text encoder reads, in one row; arguments and errors as ``text_ids``."""
        name = next((name for name in self.encoders if name in tokens), None)
        if name is None:
            wanted = " or ".join(self.encoders) or "no text at all"
            raise ValueError(
                f"the text encoder makes tokens for {', '.join(tokens)}, but {self.name} reads {wanted}; connect the "
                "CLIP of this model."
            )
        return flat_ids(tokens[name])


def flat_ids(chunks: Sequence[Sequence[Sequence[Any]]]) -> list[int]:
    """Token ids of all chunks in a row.

    Args:
        chunks: entries (token, weight) or (token, weight, word id), as ComfyUI's tokenizers make them.

    Returns:
        One id per entry: ``NOT_OF_PROMPT`` for what belongs to no word (word id 0: beginning, end and padding), and for
        a textual inversion's vector a number below that, the same for the same vector.
    """
    return [
        NOT_OF_PROMPT if len(entry) > 2 and entry[2] == 0 else _token_id(entry[0])
        for chunk in chunks
        for entry in chunk
    ]


def _token_id(token: Any) -> int:
    if isinstance(token, numbers.Integral):
        return int(token)
    vector = token["data"] if isinstance(token, Mapping) else token
    return NOT_OF_PROMPT - 1 - zlib.crc32(vector.detach().float().cpu().contiguous().numpy().tobytes())


def patched_grid(
    latents: Sequence[int], patch: Sequence[int], frames: int | None = None, pads: bool = True
) -> TokenGrid:
    """The one grid of a transformer that cuts latents [B, C, T, h, w] into patches.

    Args:
        latents: their size.
        patch: rows and columns of a patch (the last two entries).
        frames: of the video; all by default.
        pads: whether the model fills up sizes that are not a multiple of the patch; otherwise it cuts them.
    """
    frames = latents[2] if frames is None else frames
    extent = (latents[3] / patch[-2], latents[4] / patch[-1])
    if pads:
        return TokenGrid(0, frames, math.ceil(extent[0]), math.ceil(extent[1]), extent)
    return TokenGrid(0, frames, int(extent[0]), int(extent[1]), (float(int(extent[0])), float(int(extent[1]))))


def children(network: Any, name: str) -> list[Any]:
    """Submodules of a list or dict of modules, or none when the network has no such part."""
    found = getattr(network, name, None)
    if found is None:
        return []
    return list(found.values()) if hasattr(found, "values") else list(found)


def has_parts(module: Any, *names: str) -> bool:
    """Say whether a module has all of these parts."""
    return all(getattr(module, name, None) is not None for name in names)


def text_tokens(context: Tensor | None) -> int:
    """Tokens of a text embedding [B, L, C], 0 without any."""
    return 0 if context is None else context.shape[1]


def places(names: Sequence[str]) -> list[BlockPlace]:
    """Number blocks in their order."""
    return [BlockPlace(name, index, len(names)) for index, name in enumerate(names)]
