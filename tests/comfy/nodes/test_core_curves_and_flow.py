"""Core's curves as strength, and its optical flow model for carrying masks: with core's own code."""

from __future__ import annotations

import pytest
import torch
from core_values import GUIDE_SETTINGS, two_objects

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


def curve_of_core(points, interpolation="monotone_cubic"):
    """What core's editor gives."""
    from comfy_extras.nodes_curve import CurveEditor

    return CurveEditor.execute({"points": points, "interpolation": interpolation}).args[0]


class TestCurvesOfCore:
    @pytest.mark.parametrize("interpolation", ["linear", "monotone_cubic"])
    def test_ours_are_cores(self, interpolation):
        from mask_guided_video.nodes.support.curves import given_curve

        chance = torch.Generator().manual_seed(3)
        for count in (1, 2, 3, 4, 5, 9):
            for _ in range(8):
                points = torch.rand(count, 2, generator=chance).sort(0).values
                points[:, 1] = points[torch.randperm(count, generator=chance), 1]
                if count > 4:
                    points[2, 1] = points[1, 1]
                wanted = curve_of_core(points.tolist(), interpolation)
                found = given_curve(wanted)
                places = [step / 250 for step in range(251)]
                assert [found.at(x) for x in places] == pytest.approx([wanted.interp(x) for x in places], abs=1e-12)

    def test_a_curve_of_another_kind_is_read_at_many_places(self):
        from comfy_api.input import CurveInput

        from mask_guided_video.nodes.support.curves import given_curve

        class Square(CurveInput):
            points = ()

            def interp(self, x):
                return x * x

        found = given_curve(Square())
        assert [found.at(x) for x in (0.0, 0.3, 0.77, 1.0)] == pytest.approx([0.0, 0.09, 0.5929, 1.0], abs=1e-6)

    def test_points_alone_are_a_smooth_curve_as_in_core(self):
        from mask_guided_video.nodes.support.curves import given_curve

        points = [(0.0, 0.0), (0.25, 0.75), (1.0, 1.0)]
        assert given_curve(points) == given_curve(curve_of_core(points)) and given_curve(None) is None

    def test_a_guide_follows_it(self):
        from mask_guided_video.nodes.guidance import MaskToAttentionBias

        curve = curve_of_core([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)], "linear")
        given = {**GUIDE_SETTINGS, "phrases": "", "tracks": two_objects(), "strength_curve": curve}
        guide, report = MaskToAttentionBias.execute(**given).args
        assert [guide.factor_at(x) for x in (0.0, 0.25, 0.75, 1.0)] == [1.0, 0.75, 0.25, 0.0]
        assert (
            "schedule: 1.00 at 0, 0.75 at 0.25, 0.50 at 0.5, 0.25 at 0.75, 0.00 at 1; it counts from 0 to 1." in report
        )
        flat = {**given, "strength_curve": curve_of_core([(0.0, 0.0), (1.0, 0.0)])}
        guide, report = MaskToAttentionBias.execute(**flat).args
        assert not guide.is_active and report == "the strength curve is 0 everywhere: the video runs unguided."

    def test_strength_over_the_frames(self):
        from mask_guided_video.nodes.mask_modes import DynamicMaskGuidance

        own = "mode's own"
        given = {"phrases": "", "background_phrase": "", "mode": "dmg", "strength": 1.0, "start_percent": -1.0}
        given |= {"end_percent": -1.0, "key_source": own, "blocks": "", "rows": own, "time_pooling": "max"}
        given |= {"constants": "", "frame_curve": curve_of_core([(0.0, 0.0), (1.0, 0.75)], "linear")}
        guide = DynamicMaskGuidance.execute(**given, frame_strength="", tracks=two_objects()).args[0]
        assert guide.frame_strength == pytest.approx((0.0, 0.25, 0.5, 0.75)) and guide.strength_curve is None
        guide = DynamicMaskGuidance.execute(**given, frame_strength="0: 1, 3: 4", tracks=two_objects()).args[0]
        assert guide.frame_strength == pytest.approx((0.0, 0.5, 1.5, 3.0))
        with pytest.raises(ValueError, match="frame_curve goes over the frames but there is 1 mask"):
            DynamicMaskGuidance.execute(**given, frame_strength="", mask=torch.ones(1, 8, 8))

    @pytest.mark.parametrize("value", ["curve", 3, {}, {"points": [(0,)]}, [(0, "x")]])
    def test_what_is_no_curve_is_named(self, value):
        from mask_guided_video.nodes.support.curves import given_curve

        with pytest.raises(ValueError, match="the curve is .*; connect core's Curve Editor"):
            given_curve(value)

    def test_rounds_keep_it(self):
        from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings

        given = {**GUIDE_SETTINGS, "phrases": "ball", "mask": torch.ones(1, 8, 8)}
        plain, curved = (
            GuidedClipsSettings.of_guide(_guide(**given, strength_curve=curve), "a ball")
            for curve in (None, curve_of_core([(0.0, 1.0), (1.0, 0.5)]))
        )
        assert curved.guide(torch.ones(1, 1, 8, 8), ()).strength_curve.points == ((0.0, 1.0), (1.0, 0.5))
        # Rounds on disk from before there were curves are found again.
        assert "strength_curve" not in plain.round_settings() and "strength_curve" in curved.round_settings()


def _guide(**values):
    from mask_guided_video.nodes.guidance import MaskToAttentionBias

    return MaskToAttentionBias.execute(**values).args[0]


@pytest.fixture(scope="module")
def raft():
    """RAFT with random weights, as core's loader hands it on."""
    import comfy.model_management
    import comfy.model_patcher
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(raft_large(weights=None).eval(), device, torch.device("cpu"))


class TestOpticalFlowOfCore:
    def test_pictures_go_in_and_flow_comes_out_as_in_core(self, raft):
        from comfy_extras.void_noise_warp import RaftOpticalFlow

        from mask_guided_video.nodes.support.flow_models import given_flow

        chance = torch.Generator().manual_seed(1)
        before, after = (torch.randint(0, 256, (128, 136, 3), generator=chance, dtype=torch.uint8) for _ in range(2))
        found = given_flow(raft, 128, 136)(before.numpy(), after.numpy())
        wanted = RaftOpticalFlow(raft.model)(*(one.movedim(-1, 0).float() / 255 for one in (after, before)))
        assert wanted.abs().max() > 0.1
        assert torch.allclose(found.shift.movedim(-1, 0), wanted.cpu(), atol=1e-3)

    def test_gaps_are_filled_with_it(self, raft):
        from mask_guided_video.nodes.refinement import RefineMasks

        masks = two_objects(64, 96).union()
        masks[1] = 0.0
        film = torch.rand(4, 64, 96, 3, generator=torch.Generator().manual_seed(2))
        filled = RefineMasks.execute(mask=masks, image=film, fill_gaps=1, optical_flow=raft).args[1]
        assert filled[1].sum() > 0 and torch.equal(filled[[0, 2, 3]], masks[[0, 2, 3]])
        with pytest.raises(ValueError, match="connect the video to image"):
            RefineMasks.execute(mask=masks, fill_gaps=1, optical_flow=raft)
        with pytest.raises(ValueError, match="optical_flow is 'raft'; connect core's Load Optical Flow Model"):
            RefineMasks.execute(mask=masks, image=film, fill_gaps=1, optical_flow="raft")

    def test_objects_are_followed_with_it(self, raft, root):
        from mask_guided_video.nodes.segmentation_models import LoadSAM
        from mask_guided_video.nodes.tracking import TrackMasks
        from mask_guided_video.toybox import world

        if not (root / "toybox" / "segmenter" / "model.safetensors").is_file():
            pytest.skip("this checkout has no Toybox weights")
        ball = world.SceneObject("red", "ball", "right", 12.0, (20.0, 18.0), 20.0)
        clip = torch.from_numpy(world.render(world.Scene("grass", (ball,))).frames)
        calls = []
        raft.model.register_forward_pre_hook(lambda module, given: calls.append(given[0].shape))
        segmenter = LoadSAM.execute("Toybox", "fp32", False).args[0]
        settings = {"prompt_frame": 0, "max_gap": -1, "extend": -1, "minimum_seen": 1, "max_objects": 0, "soft": False}
        points = '[{"x": 20, "y": 18}]'
        tracks = TrackMasks.execute(segmenter, clip[:3], points=points, optical_flow=raft, **settings).args[0]
        assert tracks.frames == 3 and not tracks.misses[0, 0]
        assert len(calls) >= 2 and set(calls) == {(1, 3, 128, 128)}
