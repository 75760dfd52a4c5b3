"""Mask guidance written out by hand: an explicit bias over all pairs of tokens at every attention call.

It shares nothing with the pack but the guide's settings. The tiny models of ``native_models`` are small enough to say
beforehand which attention calls they make, one after the other; ``CALLS`` lists them, worked out from ComfyUI's model
files by hand. An override counts the calls of each model call, checks their lengths against the table and adds a bias
[Lq, Lk] that is made of the masks by repeating, padding and averaging pixels, and by loops over rows of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from native_models import TEXT, TinyModel
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans

OVERRIDE = "optimized_attention_override"
# exp(-1000) is 0: this closes a key.
CLOSED = -1000.0


def guides_ask_apart() -> bool:
    """Whether this ComfyUI lets the film and LTX-Video's weak guides ask in calls of their own."""
    from comfy.ldm.lightricks import model

    return hasattr(model, "GuideAttentionMask")


@dataclass(frozen=True)
class Calls:
    """What a tiny model does in one model call.

    Attributes:
        order: its attention calls, each a letter and the level of its grid. ``S`` self-attention of the film, ``T`` of
            one cell over time, ``C`` cross-attention with the text, ``J`` film and text in one, ``-`` neither. With
            ``<`` only the queries up to the film's last one ask; with ``:2`` only those of the film's frame 2, who
            also meet as many keys of something else, at the end.
        frames: of the film (context windows give fewer).
        grids: for each level rows and columns of tokens, and how many latent cells a token is wide and high.
        factor: pixel frames per latent frame after the first, or of each latent frame in turn, over and over.
        before, after: tokens in the film's sequence that are not of the film: reference pictures, guide pictures.
        text: tokens of text that attention sees.
        per_frame: whether each frame is a row of the batch of its own.
        text_first: whether a joint sequence begins with the text; else it ends with it.
        leading: how many of the latents' first frames are not of the film.
        clip: latent frames of the film where a token covers two of them; ``frames`` are then those of the tokens.
        before_text: tokens of pictures and glyphs that stand before a joint sequence's text.

    ``test_token_places`` measures that this is where the tokens stand.
    """

    order: str
    frames: int
    grids: tuple[tuple[int, int, int], ...]
    factor: int | tuple[int, ...]
    before: int = 0
    after: int = 0
    text: int = TEXT
    per_frame: bool = False
    text_first: bool = False
    leading: int = 0
    clip: int = 0
    before_text: int = 0

    @property
    def latents(self) -> int:
        """Latent frames of the film."""
        return self.clip or self.frames

    @property
    def span(self) -> int:
        """Latent frames of a token."""
        return 2 if self.clip else 1

    def video_start(self, kind: str) -> int:
        """First token of the film in the sequence of a kind of call."""
        return self.before + (self.before_text + self.text if kind == "J" and self.text_first else 0)

    def text_start(self, level: int) -> int:
        """First token of the text in a joint sequence."""
        rows, columns, _ = self.grids[level]
        return self.before_text if self.text_first else self.before + self.frames * rows * columns + self.after

    def length(self, kind: str, level: int) -> int:
        """Tokens of the sequence that the film is in."""
        rows, columns, _ = self.grids[level]
        film = self.before + self.frames * rows * columns + self.after
        return film + (self.before_text + self.text if kind == "J" else 0)

    def covered(self, frames: int) -> list[int]:
        """Pixel frames of each of so many latent frames."""
        if isinstance(self.factor, int):
            return [1] + [self.factor] * (frames - 1)
        return [self.factor[frame % len(self.factor)] for frame in range(frames)]

    @property
    def each(self) -> list[str]:
        """The calls of ``order`` one by one; on hosts that weigh all guides in one call, no query asks apart."""
        order = self.order if "<" not in self.order or guides_ask_apart() else self.order.replace("S0< -0", "S0")
        return order.split()

    @property
    def has_words(self) -> bool:
        return "C" in self.order or "J" in self.order


WAN_BLOCKS = "S0 C0 S0 C0"
WAN_GRID = ((4, 6, 2),)
# A token for each latent cell.
ONE_CELL = ((4, 6, 1),)
HUNYUAN15_BLOCKS = "-0 -0 J0 J0"
# The film's queries, those of the guide, the text.
LTX_SPLIT = "S0< -0 C0 S0< -0 C0"
# Film, text, sound, sound and text, film and sound, sound and film; the same with a guide that asks apart.
LTXAV = " ".join(["S0 C0 -0 -0 -0 -0"] * 2)
LTXAV_SPLIT = " ".join(["S0< -0 C0 -0 -0 -0 -0"] * 2)
# The text and what the connector puts after it.
LTXAV_TEXT = 1024
# Pixel frames of MiniMax H3's latent frames in turn.
MINIMAX_TIME = (1, 4, 4, 4, 4)
UNET_GRIDS = ((8, 12, 1), (4, 6, 2), (2, 3, 4))
# Down: levels 0 and 1, middle: level 2, up: twice level 1, twice level 0.
UNET_LEVELS = (0, 1, 2, 1, 1, 0, 0)
# The same for SDXL, whose finest level has no attention and whose blocks come in pairs.
SDXL_LEVELS = (1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1)

CALLS: dict[str, Calls] = {
    "wan": Calls(WAN_BLOCKS, 3, WAN_GRID, 4),
    # 7 x 11 latents are padded to 8 x 12.
    "wan_odd": Calls(WAN_BLOCKS, 3, WAN_GRID, 4),
    # The picture's tokens are read before the text.
    "wan_image": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4),
    "wan_reference": Calls(WAN_BLOCKS, 3, WAN_GRID, 4, before=24),
    # After the first block VACE's own block reads its control film and the text.
    "wan_vace": Calls("S0 C0 -0 -0 S0 C0", 3, WAN_GRID, 4),
    "wan_vace_reference": Calls("S0 C0 -0 -0 S0 C0", 3, WAN_GRID, 4, before=24, leading=1),
    "wan_5b": Calls(WAN_BLOCKS, 3, WAN_GRID, 4),
    "wan_camera": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4),
    "wan_camera22": Calls(WAN_BLOCKS, 3, WAN_GRID, 4),
    # The third call of a block hears the sound.
    "wan_humo": Calls("S0 C0 -0 S0 C0 -0", 3, WAN_GRID, 4, after=24),
    # A reference, and 24 + 12 + 12 tokens of the frames before, the finer the nearer.
    "wan_speech": Calls(WAN_BLOCKS, 3, WAN_GRID, 4, after=72),
    "wan_animate": Calls(" ".join(["S0 -0 C0"] * 5), 3, WAN_GRID, 4, before=24, leading=1),
    # The pose film's three calls, the reference's, those of the film's frames, the picture's, the text's.
    "wan_animate2": Calls(" ".join(["-0 -0 -0 -0 S0:0 S0:1 S0:2 -0 C0"] * 2), 3, WAN_GRID, 4, before=24, leading=1),
    "wan_animate2_still": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4, before=24, leading=1),
    "wan_scail": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4, before=24, after=18),
    "wan_scail2": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4, before=48, after=18),
    "wan_dancer": Calls("S0 -0 C0 S0 -0 C0", 3, WAN_GRID, 4),
    # A source film and a picture of 2 x 4 tokens.
    "wan_bernini": Calls(WAN_BLOCKS, 3, WAN_GRID, 4, after=80),
    "ltx": Calls("S0 C0 S0 C0", 3, ((4, 5, 1),), 8),
    "ltx_guided": Calls("S0 C0 S0 C0", 3, ((4, 5, 1),), 8, after=20),
    "ltx_weak_guide": Calls(LTX_SPLIT, 3, ((4, 5, 1),), 8, after=20),
    "ltx_masked_guide": Calls(LTX_SPLIT, 3, ((4, 5, 1),), 8, after=20),
    "ltxav": Calls(LTXAV, 3, ((4, 5, 1),), 8, text=LTXAV_TEXT),
    "ltxav_silent": Calls("S0 C0 S0 C0", 3, ((4, 5, 1),), 8, text=LTXAV_TEXT),
    "ltxav_23": Calls(LTXAV, 3, ((4, 5, 1),), 8, text=LTXAV_TEXT),
    "ltxav_25": Calls(LTXAV, 3, ((4, 5, 1),), 8, after=20, text=LTXAV_TEXT),
    "ltxav_weak_guide": Calls(LTXAV_SPLIT, 3, ((4, 5, 1),), 8, after=20, text=LTXAV_TEXT),
    "ltxav_masked_guide": Calls(LTXAV_SPLIT, 3, ((4, 5, 1),), 8, after=20, text=LTXAV_TEXT),
    # Two calls of the text refiner, one double block, two single blocks.
    "hunyuan": Calls("-0 -0 J0 J0 J0", 3, WAN_GRID, 4, text_first=True),
    "hunyuan_masked": Calls("-0 -0 J0 J0 J0", 3, WAN_GRID, 4, text_first=True),
    "hunyuan_reference": Calls("-0 -0 J0 J0 J0", 3, WAN_GRID, 4, before=24, text_first=True),
    # Two calls of the text refiner, two double blocks; a picture's 9 tokens and 7 of glyphs.
    "hunyuan15": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True),
    "hunyuan15_masked": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True),
    "hunyuan15_vision": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True, before_text=9),
    "hunyuan15_glyphs": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True, before_text=7),
    "hunyuan15_image": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True, before_text=16),
    "hunyuan15_reference": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, before=24, text_first=True, before_text=9),
    "hunyuan15_sr": Calls(HUNYUAN15_BLOCKS, 3, ONE_CELL, 4, text_first=True, before_text=7),
    # Two blocks of the text, two of the film.
    "kandinsky5": Calls("-0 -0 S0 C0 S0 C0", 3, WAN_GRID, 4),
    "kandinsky5_pro": Calls("-0 -0 S0 C0 S0 C0", 3, WAN_GRID, 4),
    "kandinsky5_image": Calls("-0 -0 S0 C0 S0 C0", 3, WAN_GRID, 4),
    "cogvideox": Calls("J0 J0", 3, WAN_GRID, 4, text_first=True),
    "cogvideox_image": Calls("J0 J0", 3, WAN_GRID, 4, text_first=True),
    # A token covers two latent frames; the last one of an odd film is filled up.
    "cogvideox15": Calls("J0 J0", 2, WAN_GRID, 4, text_first=True, clip=4),
    "cogvideox15_odd": Calls("J0 J0", 2, WAN_GRID, 4, text_first=True, clip=3),
    # The three tokens of padding at the end are cut off.
    "mochi": Calls("J0 J0", 3, WAN_GRID, 6, text=TEXT - 3),
    # Sound stands before the film, and before it what else the model is given: two pictures of 24 tokens and a sound of
    # 4, one of 48; a picture of 6 tokens, a sound of 6 and its film of 8, a sound of 8.
    "minimax_h3": Calls("J0 J0", 7, WAN_GRID, MINIMAX_TIME, before=18, text_first=True),
    "minimax_h3_odd": Calls("J0 J0", 7, WAN_GRID, MINIMAX_TIME, before=18, text_first=True),
    "minimax_h3_keyframes": Calls("J0 J0", 7, WAN_GRID, MINIMAX_TIME, before=18 + 76, text_first=True),
    "minimax_h3_references": Calls("J0 J0", 7, WAN_GRID, MINIMAX_TIME, before=18 + 28, text_first=True),
    "cosmos": Calls("S0 C0 S0 C0", 3, WAN_GRID, 8),
    "cosmos_predict2": Calls("S0 C0 S0 C0", 3, WAN_GRID, 4),
    "sd15": Calls(" ".join(f"S{n} C{n}" for n in UNET_LEVELS), 4, UNET_GRIDS, 1, per_frame=True),
    # 7 x 10 latents, 4 x 5 and 2 x 3 after halving.
    "sd15_odd": Calls(
        " ".join(f"S{n} C{n}" for n in UNET_LEVELS), 3, ((7, 10, 1), (4, 5, 2), (2, 3, 4)), 1, per_frame=True
    ),
    "sdxl": Calls(" ".join(f"S{n} C{n}" for n in SDXL_LEVELS), 3, UNET_GRIDS, 1, per_frame=True),
    # Each block has a temporal one behind it; what both cross-attend to is a picture.
    "svd": Calls(" ".join(f"S{n} -{n} T{n} -{n}" for n in UNET_LEVELS), 6, UNET_GRIDS, 1, text=1, per_frame=True),
}


# --- masks to tokens --------------------------------------------------------------------------------------------------


def latent_frames(masks: Tensor, covered: Sequence[int], pooling: str = "max", span: int = 1) -> Tensor:
    """Pixel frames [R, F, H, W] to latent frames [R, len(covered), H, W], each of which has ``covered`` of them.

    With ``span`` 2 to pairs of latent frames, which a token covers.
    """
    frames = len(covered)
    if masks.shape[1] == 1:
        return masks.repeat(1, -(-frames // span), 1, 1)
    if masks.shape[1] == frames and span == 1:
        return masks
    assert masks.shape[1] in (frames, sum(covered))
    pool = {
        "max": lambda part: part.max(dim=1).values,
        "mean": lambda part: part.mean(dim=1),
        "min": lambda part: part.min(dim=1).values,
        "first": lambda part: part[:, 0],
        "last": lambda part: part[:, -1],
    }[pooling]
    parts = masks.split(1 if masks.shape[1] == frames else list(covered), dim=1)
    joined = [torch.cat(parts[first : first + span], dim=1) for first in range(0, frames, span)]
    return torch.stack([pool(part) for part in joined], dim=1)


def token_means(masks: Tensor, latents: tuple[int, int], grid: tuple[int, int, int]) -> Tensor:
    """Average masks [R, T, H, W] over the pixels of each token, [R, T, rows, columns]; padding has no pixels."""
    (height, width), (rows, columns, patch) = latents, grid
    # Each latent cell gets a whole number of (repeated) pixels ...
    fine = masks.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    cell = (masks.shape[2], masks.shape[3])
    # ... and what the model pads counts for nothing.
    size = (rows * patch * cell[0], columns * patch * cell[1])
    padded = torch.full((*fine.shape[:2], *size), float("nan"))
    padded[:, :, : fine.shape[2], : fine.shape[3]] = fine
    blocks = padded.unflatten(3, (columns, patch * cell[1])).unflatten(2, (rows, patch * cell[0]))
    return blocks.nanmean(dim=(3, 5))


def objects_in_tokens(guide: Guide, calls: Calls, latents: tuple[int, int], level: int) -> tuple[Tensor, Tensor]:
    """Shares of each object [R, T, rows, columns], and whether it is in a frame at all [R, T]."""
    covered = calls.covered(calls.latents)
    masks = latent_frames(guide.masks, covered, guide.time_pooling, calls.span)
    shares = token_means(masks, latents, calls.grids[level])
    present = torch.zeros(shares.shape[:2], dtype=torch.bool)
    for index in range(shares.shape[0]):
        for frame in range(shares.shape[1]):
            share = shares[index, frame]
            present[index, frame] = masks[index, frame].max() >= 0.5
            if not present[index, frame]:
                share.zero_()
            elif share.max() < 0.5:
                # A thin object keeps its strongest token.
                share /= share.max().clone()
    if guide.mode.hard:
        cut = shares >= 0.5
        for index in range(shares.shape[0]):
            for later in range(index + 1, shares.shape[0]):
                cut[index] &= ~(shares[later] >= 0.5)
        shares = cut.float()
        present &= cut.flatten(2).any(dim=2)
    else:
        total = shares.sum(dim=0)
        shares = torch.where(total > 1.0, shares / total, shares)
    return shares, present


# --- tokens to biases -------------------------------------------------------------------------------------------------


def film_bias(guide: Guide, shares: Tensor, present: Tensor) -> Tensor:
    """Bias [N, N] between all N tokens of the film; rows are queries."""
    count, frames, rows, columns = shares.shape
    share = shares.reshape(count, -1).T
    tokens, strength = share.shape[0], guide.own_strength
    logs = strength * share.clamp(min=1e-4).log()
    bias = torch.zeros(tokens, tokens)
    for query in range(tokens):
        own, frame = share[query], query // (rows * columns)
        if not present[:, frame].any():
            continue
        if guide.mode.name == "focus":
            bias[query] = strength * share.max(dim=1).values.clamp(min=1e-4).log()
        elif guide.mode.name == "focus_fg" and own.sum() >= 0.5:
            bias[query] = logs @ (own / own.sum())
        elif guide.mode.name == "separate":
            background = 1.0 - share.sum(dim=1)
            together = share @ own + background * background[query]
            bias[query] = (CLOSED if guide.mode.hard else -strength) * (1.0 - together)
    return bias


def words_bias(guide: Guide, shares: Tensor, present: Tensor, positions: Sequence[Sequence[int]], text: int) -> Tensor:
    """Bias [N, text] of the film's tokens towards the words of each object."""
    count, frames, rows, columns = shares.shape
    bias = torch.zeros(frames * rows * columns, text)
    for query in range(bias.shape[0]):
        frame, row, column = query // (rows * columns), query // columns % rows, query % columns
        for index in range(count):
            if not present[index, frame]:
                continue
            inside = shares[index, frame, row, column]
            for word in positions[index]:
                if guide.mode.name == "separate":
                    bias[query, word] += (CLOSED if guide.mode.hard else -guide.own_strength) * (1.0 - inside)
                elif guide.mode.name == "cross_text":
                    bias[query, word] += guide.own_strength * inside
                    bias[query, word] += CLOSED * (1.0 - inside) if guide.mode.hard else 0.0
    return bias


@dataclass(eq=False)
class DenseGuide:
    """One guide as explicit biases.

    Attributes:
        guide: settings and masks.
        spans: where the words of the objects stand.
        prompt: embedding of the only prompt whose words are meant; None is every positive one.
    """

    guide: Guide
    calls: Calls
    latents: tuple[int, int]
    spans: TextSpans | None = None
    prompt: Tensor | None = None
    made: dict[tuple[str, bool], Tensor | None] = field(default_factory=dict)

    def bias(self, call: str, chunk: int, prompt: Tensor | None) -> Tensor | None:
        """[groups, Lq, Lk] of one attention call for a chunk of the batch, or None where it is left alone.

        Args:
            call: letter and level of ``Calls.order``.
            chunk: 0 conditional, 1 unconditional.
            prompt: the text that the model is given for this chunk.
        """
        conditional = chunk == 0
        words = conditional and self.spans is not None
        if words and self.prompt is not None:
            words = torch.equal(prompt[:1], self.prompt)
        film = (conditional or self.guide.mode.rows == "both") and self.guide.mode.name != "cross_text"
        key = (call, words, film)
        if key not in self.made:
            self.made[key] = self._make(call[0], int(call[1]), call[2:], words, film)
        return self.made[key]

    def _make(self, kind: str, level: int, asking: str, words: bool, film: bool) -> Tensor | None:
        calls, (rows, columns, _) = self.calls, self.calls.grids[level]
        tokens = calls.frames * rows * columns
        shares, present = objects_in_tokens(self.guide, calls, self.latents, level)
        among = film_bias(self.guide, shares, present) if film else torch.zeros(tokens, tokens)
        to_words = torch.zeros(tokens, calls.text)
        if words:
            to_words = words_bias(self.guide, shares, present, self.spans.positions, calls.text)
        shape = (calls.frames, rows * columns)
        if kind == "-" or (kind == "T" and self.guide.mode.name != "separate"):
            return None
        if kind == "T":
            by_cell = among.view(*shape, *shape)
            return torch.stack([by_cell[:, cell, :, cell] for cell in range(shape[1])])
        if calls.per_frame:
            by_frame = among.view(*shape, *shape)
            if kind == "C":
                return to_words.view(*shape, calls.text)
            return torch.stack([by_frame[frame, :, frame] for frame in range(shape[0])])
        start, length = calls.video_start(kind), calls.length(kind, level)
        queries = slice(start, start + tokens)
        if kind == "C":
            out = torch.zeros(1, length, calls.text)
            out[0, queries] = to_words
            return out
        out = torch.zeros(1, length, length)
        out[0, queries, queries] = among
        if kind == "J":
            text = calls.text_start(level)
            out[0, queries, text : text + calls.text] = to_words
        if asking == "<":
            return out[:, : queries.stop]
        if asking:
            size = rows * columns
            first = start + int(asking[1:]) * size
            return torch.nn.functional.pad(out[:, first : first + size], (0, size))
        return out


class DenseReference:
    """Hangs dense guides into a tiny model; the numbers of calls and their lengths are checked on the way.

    Args:
        model: the tiny model.
        guides: their biases are added up.
        active: whether the guides act at a noise level.
    """

    def __init__(self, model: TinyModel, guides: Sequence[DenseGuide], active: Any = None) -> None:
        self.order = CALLS[model.name].each
        self.guides = guides
        self.active = active or (lambda sigma: True)
        self.count = 0
        self.model_calls = 0
        self.chunks: list[int] = []
        self.prompts: list[Tensor | None] = []
        self.on = True

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseReference:
        # ComfyUI copies model options at every clone, and with them the methods that are hung in.
        return self

    def hang(self, patcher: Any) -> Any:
        """A clone of the model with the explicit biases."""
        patched = patcher.clone()
        options = patched.model_options["transformer_options"]
        previous = options.get(OVERRIDE)

        def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
            return self.attend(function, previous, *args, **kwargs)

        options[OVERRIDE] = override
        patched.set_model_unet_function_wrapper(self.call_model)
        return patched

    def call_model(self, apply_model: Any, args: dict[str, Any]) -> Tensor:
        """One call of the model: note what is in its batch."""
        context = args["c"].get("c_crossattn")
        self.chunks = args["cond_or_uncond"]
        self.prompts = [None] * len(self.chunks) if context is None else list(context.chunk(len(self.chunks)))
        self.on = self.active(float(args["timestep"][0]))
        self.count = 0
        self.model_calls += 1
        out = apply_model(args["input"], args["timestep"], **args["c"])
        assert self.count == len(self.order), f"{self.count} attention calls, not {len(self.order)}"
        return out

    def attend(self, function: Any, previous: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One attention call."""
        names = ("q", "k", "v", "heads", "mask")
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        call = self.order[self.count]
        self.count += 1
        mask = self._mask(call, named["q"]) if self.on else None
        if mask is not None:
            given = named.pop("mask", None)
            assert mask.shape[-2:] == (named["q"].shape[-2], named["k"].shape[-2]), call
            if given is not None:
                given = given[None, None] if given.ndim == 2 else given[:, None] if given.ndim == 3 else given
                mask = mask + given
            named["mask"] = mask
        rest = {name: value for name, value in named.items() if name not in names}
        inputs = (named["q"], named["k"], named["v"], named["heads"])
        mask = named.get("mask")
        if previous is None:
            return function(*inputs, mask=mask, **rest)
        return previous(function, *inputs, mask=mask, **rest)

    def _mask(self, call: str, q: Tensor) -> Tensor | None:
        """[B, 1, Lq, Lk]: chunk by chunk, film by film, frame by frame (or cell by cell)."""
        parts = [
            [guide.bias(call, chunk, prompt) for guide in self.guides]
            for chunk, prompt in zip(self.chunks, self.prompts, strict=True)
        ]
        known = next((bias for biases in parts for bias in biases if bias is not None), None)
        if known is None:
            return None
        films = q.shape[0] // len(self.chunks) // known.shape[0]
        rows = []
        for biases in parts:
            total = torch.zeros_like(known)
            for bias in biases:
                total = total if bias is None else total + bias
            rows += [total] * films
        return torch.cat(rows)[:, None].to(q)
