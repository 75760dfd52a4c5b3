"""Preview Guide shows the shares of tokens that attention sees, compared with shares that are worked out by hand."""

from __future__ import annotations

import pytest
import torch
from dense_reference import CALLS, objects_in_tokens
from native_guides import guide_of
from native_models import tiny

pytestmark = pytest.mark.comfy

NAMES = (
    *(
        "wan",
        "wan_odd",
        "ltx",
        "hunyuan",
        "hunyuan15",
        "mochi",
        "minimax_h3",
        "minimax_h3_odd",
        "cosmos",
        "cosmos_predict2",
        "kandinsky5",
    ),
    *("sd15", "sd15_odd", "sdxl", "svd"),
)


def expected_pictures(name: str, changes: dict[str, object]) -> torch.Tensor:
    """[T, rows, columns, 3] of the finest grid that the model attends on."""
    from mask_guided_video.nodes.support.previews import BACKGROUND_COLOUR, REGION_COLOURS

    model, calls = tiny(name), CALLS[name]
    finest = min(int(call[1]) for call in calls.each)
    shares, _ = objects_in_tokens(guide_of(name, "separate", **changes), calls, model.latents[-2:], finest)
    background = torch.tensor(BACKGROUND_COLOUR)
    picture = background.expand(*shares.shape[1:], 3).clone()
    for share, colour in zip(shares, REGION_COLOURS, strict=False):
        picture += share[..., None] * (torch.tensor(colour) - background)
    return picture.clamp(0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, {"hard": True}, {"time_pooling": "min"}, {"time_pooling": "last"}])
def test_preview_is_what_attention_sees(name: str, changes: dict[str, object]) -> None:
    from mask_guided_video.nodes.guidance import PreviewGuide

    model = tiny(name)
    expected = expected_pictures(name, changes)
    frames, rows, columns = expected.shape[:3]
    guide = guide_of(name, "separate", **changes)
    picture, *_ = PreviewGuide.execute(guide, model.patcher, {"samples": model.empty()}, rows).args
    assert picture.shape[:2] == (frames, rows)
    torch.testing.assert_close(picture[:, :, :columns], expected, atol=1e-5, rtol=0)
    assert picture.flatten(0, 2).unique(dim=0).shape[0] > 2


def test_preview_of_masks_that_do_not_fit_names_those_that_do() -> None:
    from mask_guided_video.nodes.guidance import PreviewGuide

    with pytest.raises(ValueError, match="9 mask frames do not fit a clip of 4 latent frames .*13 frames of film"):
        PreviewGuide.execute(
            guide_of("wan", "separate"), tiny("wan").patcher, {"samples": torch.zeros(1, 16, 4, 8, 12)}, 64
        )


def test_preview_asks_for_the_right_kind_of_latent() -> None:
    from mask_guided_video.nodes.guidance import PreviewGuide

    with pytest.raises(ValueError, match="frames, channels, height, width"):
        PreviewGuide.execute(
            guide_of("sd15", "separate"), tiny("sd15").patcher, {"samples": torch.zeros(1, 4, 4, 8, 12)}, 64
        )
