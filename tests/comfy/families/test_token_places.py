"""Every token is where the pack says, in every family and variant: seen by changing one thing at a time.

What the pack says of a call is its site; what ``dense_reference`` says is in ``Calls``. Both are compared with where a
changed cell of the latents, and a changed row of the text, is seen among the tokens of q and k.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from dense_reference import CALLS, Calls
from family_rows import all_but, rows
from native_models import BUILDERS, tiny
from token_places import MANY_ROWS, Cell, Place, SeenCall, see

from mask_guided_video.attention_patches.site import AttentionSite

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# LTX-2 reads a thousand rows of text: by default one variant of it, and its guides as those of LTX-Video. The other
# U-Nets are called as Stable Diffusion 1's; what guides their clips is that of explicit biases by default.
HEAVY = ("ltxav_23", "ltxav_25", "ltxav_weak_guide", "ltxav_masked_guide", "svd", "sdxl", "sd15_odd")
KINDS = {"S": "self", "T": "temporal", "C": "cross", "J": "joint"}


@cache
def seen(name: str) -> list[SeenCall]:
    return see(tiny(name))


def fills_up(calls: Calls, cell: Cell) -> bool:
    """Whether a cell is seen in two tokens: in its own and in the last one, which it fills up."""
    return calls.clip % 2 == 1 and cell[0] == 0


def said(site: AttentionSite, calls: Calls, latents: tuple[int, int], cell: Cell, of_keys: bool) -> Place:
    """Where the pack says that a latent cell is among the queries or the keys; None where it is none of the film's."""
    frame, height, width = cell[0] - calls.leading, *site.grid[1:]
    frames = site.query_frames if site.query_frames is not None and not of_keys else site.frames
    # A token covers all latent frames up to the next one's.
    frame = next((first for first in frames if first <= frame < first + calls.span), None)
    if frame is None:
        return None
    filled = site.extent or (height, width)
    row, column = (int(at * full / size) for at, full, size in zip(cell[1:], filled, latents, strict=True))
    place, in_frame = frames.index(frame), row * width + column
    first = (site.key_video if of_keys and site.key_video is not None else site.video).start
    if site.rows.folded == "frames":
        return place, first + in_frame
    if site.rows.folded == "positions":
        return in_frame, first + place
    return 0, first + place * height * width + in_frame


def coarse(place: Place, site: AttentionSite, calls: Calls) -> tuple[int, ...] | None:
    """A place as far as U-Nets keep it: what has been halved comes back as whole blocks of equal tokens."""
    if place is None or not calls.per_frame:
        return place
    block = 2 ** (len(calls.grids) - 1 - site.level)
    token = place[0] if site.rows.folded == "positions" else place[1]
    rest = place[1] if site.rows.folded == "positions" else place[0]
    row, column = divmod(token, site.grid[2])
    return rest, row // block, column // block


@pytest.mark.parametrize("name", rows(sorted(BUILDERS), all_but(*HEAVY)))
def test_the_film_is_where_the_pack_says(name: str) -> None:
    calls, latents = CALLS[name], tiny(name).latents[-2:]
    for call in seen(name):
        if call.site is None:
            continue
        sides = [(call.queries, False)] + ([] if call.site.kind == "cross" else [(call.keys, True)])
        for places, of_keys in sides:
            assert len(places) > call.site.clip_frames
            for cell, place in places.items():
                if fills_up(calls, cell):
                    continue
                expected = said(call.site, calls, latents, cell, of_keys)
                if expected is not None:
                    assert coarse(place, call.site, calls) == coarse(expected, call.site, calls), (call.site, cell)
                elif place is not None:
                    # A reference or a guide picture, or a frame that does not ask here: nothing of it is taken for
                    # film.
                    video = call.site.key_video if of_keys and call.site.key_video is not None else call.site.video
                    assert place[1] not in video.within(call.lengths[of_keys]), (call.site, cell)


@pytest.mark.parametrize("name", rows([name for name in sorted(BUILDERS) if CALLS[name].has_words], all_but(*HEAVY)))
def test_words_are_where_the_pack_says(name: str) -> None:
    calls, worded = CALLS[name], 0
    for call in seen(name):
        if call.site is None or call.site.kind not in ("cross", "joint"):
            continue
        worded += 1
        assert call.site.text is not None
        assert call.site.text.stop - call.site.text.start == calls.text
        for row, place in call.words.items():
            expected = call.site.text.start + row if row < calls.text else None
            assert (None if place is None else place[1]) == expected, (call.site, row)
    assert worded


@pytest.mark.parametrize("name", rows(sorted(BUILDERS), all_but(*HEAVY)))
def test_all_calls_that_are_wanted_are_found(name: str) -> None:
    wanted = [KINDS.get(call[0]) for call in CALLS[name].each]
    assert [None if call.site is None else call.site.kind for call in seen(name)] == wanted


@pytest.mark.parametrize(
    "name", rows([name for name in sorted(BUILDERS) if not CALLS[name].per_frame], all_but(*HEAVY))
)
def test_the_reference_lays_tokens_where_they_stand(name: str) -> None:
    """So that what is proven with explicit biases shares no order of tokens with the pack."""
    calls, latents = CALLS[name], tiny(name).latents[-2:]
    checked: Counter[str] = Counter()
    for call, letter in zip(seen(name), calls.each, strict=True):
        kind, level, asking = letter[0], letter[1], letter[2:]
        if kind == "-":
            continue
        rows, columns, patch = calls.grids[int(level)]
        for cell, place in call.keys.items() if kind in "SJ" else call.queries.items():
            frame = cell[0] - calls.leading
            if fills_up(calls, cell):
                continue
            if 0 <= frame < calls.frames * calls.span:
                in_frame = cell[1] // patch * columns + cell[2] // patch
                start = calls.video_start(kind) + frame // calls.span * rows * columns
                assert place == (0, start + in_frame)
        for cell, place in call.queries.items() if asking[:1] == ":" else ():
            if cell[0] - calls.leading == int(asking[1:]):
                assert place == (0, cell[1] // patch * columns + cell[2] // patch)
        if kind in "CJ":
            start = calls.text_start(int(level)) if kind == "J" else 0
            rows_of_text = {row: place for row, place in call.words.items() if row < calls.text}
            assert len(rows_of_text) >= min(calls.text, MANY_ROWS)
            assert all(place == (0, start + row) for row, place in rows_of_text.items())
        checked[kind] += 1
    assert checked
    assert latents[0] * latents[1] >= calls.grids[0][0] * calls.grids[0][1]
