"""Mask-Guided Video: steer where and how a video model attends.

ComfyUI imports this folder as a package under a name of its own choosing, so everything inside imports
relatively. Without ComfyUI no nodes are registered and everything else works.
"""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

# Both mappings are written out: ComfyUI's tools read them from the source without running it.
if find_spec("comfy_api") is None or find_spec("folder_paths") is None:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
else:
    from .missing_packages import warn_of_missing_packages
    from .nodes.box_converters import BBOXToBoxes, BoxesToBBOX, FromSEGS, ToSEGS
    from .nodes.core_types import TracksToCore
    from .nodes.detection import DetectObjects, LoadGroundingDINO
    from .nodes.extension import MaskGuidedExtend
    from .nodes.film_files import SaveLongVideo
    from .nodes.first_frame import FirstFrameLock, HistogramMatch, LampSampler, SharedNoise
    from .nodes.guidance import MaskToAttentionBias, PatchAttention, PreviewGuide
    from .nodes.lavie_stages import InterpolateVideo, UpscaleVideo
    from .nodes.levers import AttentionEnergy, CrudeFilm, DualClockSampler
    from .nodes.long_video import FreeLong, FreeLongWindows
    from .nodes.mask_metrics import MaskMetrics
    from .nodes.mask_modes import DynamicMaskGuidance, ObjectWords
    from .nodes.mask_sequences import MaskSequence, PathMasks
    from .nodes.model_files.folders import register_folder
    from .nodes.motion import LoadMotion, TrainMotion
    from .nodes.object_masks import MaskToTracks, SplitTracks
    from .nodes.objects import PreviewTracks, SelectObjects
    from .nodes.prompt_schedule import PromptSchedule
    from .nodes.prompts import TrackPrompt
    from .nodes.refinement import RefineMasks
    from .nodes.regeneration import Regenerate
    from .nodes.segmentation_models import LoadSAM
    from .nodes.tracking import TrackMasks
    from .nodes.video import LoadVideoModel, SampleVideo, VideoNoise

    warn_of_missing_packages()
    register_folder("grounding-dino")
    register_folder("sams")
    register_folder("sam2")
    register_folder("sam3")

    NODE_CLASS_MAPPINGS = {
        "MGV_LoadVideoModel": LoadVideoModel,
        "MGV_VideoNoise": VideoNoise,
        "MGV_SampleVideo": SampleVideo,
        "MGV_Regenerate": Regenerate,
        "MGV_LoadGroundingDINO": LoadGroundingDINO,
        "MGV_DetectObjects": DetectObjects,
        "MGV_LoadSAM": LoadSAM,
        "MGV_TrackPrompt": TrackPrompt,
        "MGV_TrackMasks": TrackMasks,
        "MGV_RefineMasks": RefineMasks,
        "MGV_SelectObjects": SelectObjects,
        "MGV_PreviewTracks": PreviewTracks,
        "MGV_SplitTracks": SplitTracks,
        "MGV_MaskToTracks": MaskToTracks,
        "MGV_BoxesToBBOX": BoxesToBBOX,
        "MGV_BBOXToBoxes": BBOXToBoxes,
        "MGV_ToSEGS": ToSEGS,
        "MGV_FromSEGS": FromSEGS,
        "MGV_TracksToCore": TracksToCore,
        "MGV_MaskToAttentionBias": MaskToAttentionBias,
        "MGV_PatchAttention": PatchAttention,
        "MGV_PreviewGuide": PreviewGuide,
        "MGV_FreeLong": FreeLong,
        "MGV_FreeLongWindows": FreeLongWindows,
        "MGV_PromptSchedule": PromptSchedule,
        "MGV_InterpolateVideo": InterpolateVideo,
        "MGV_UpscaleVideo": UpscaleVideo,
        "MGV_SaveLongVideo": SaveLongVideo,
        "MGV_MaskGuidedExtend": MaskGuidedExtend,
        "MGV_PathMasks": PathMasks,
        "MGV_MaskSequence": MaskSequence,
        "MGV_DynamicMaskGuidance": DynamicMaskGuidance,
        "MGV_ObjectWords": ObjectWords,
        "MGV_MaskMetrics": MaskMetrics,
        "MGV_FirstFrameLock": FirstFrameLock,
        "MGV_SharedNoise": SharedNoise,
        "MGV_LampSampler": LampSampler,
        "MGV_HistogramMatch": HistogramMatch,
        "MGV_AttentionEnergy": AttentionEnergy,
        "MGV_CrudeFilm": CrudeFilm,
        "MGV_DualClockSampler": DualClockSampler,
        "MGV_TrainMotion": TrainMotion,
        "MGV_LoadMotion": LoadMotion,
    }
    NODE_DISPLAY_NAME_MAPPINGS = {
        "MGV_LoadVideoModel": "Load Video Model",
        "MGV_VideoNoise": "Video Noise",
        "MGV_SampleVideo": "Sample Video",
        "MGV_Regenerate": "Regenerate",
        "MGV_LoadGroundingDINO": "Load GroundingDINO",
        "MGV_DetectObjects": "Detect Objects",
        "MGV_LoadSAM": "Load SAM",
        "MGV_TrackPrompt": "Track Prompt",
        "MGV_TrackMasks": "Track Masks",
        "MGV_RefineMasks": "Refine Masks",
        "MGV_SelectObjects": "Select Objects",
        "MGV_PreviewTracks": "Preview Tracks",
        "MGV_SplitTracks": "Split Tracks",
        "MGV_MaskToTracks": "Mask to Tracks",
        "MGV_BoxesToBBOX": "Boxes to BBOX",
        "MGV_BBOXToBoxes": "BBOX to Boxes",
        "MGV_ToSEGS": "To SEGS",
        "MGV_FromSEGS": "From SEGS",
        "MGV_TracksToCore": "Tracks to Core",
        "MGV_MaskToAttentionBias": "Mask to Attention Bias",
        "MGV_PatchAttention": "Patch Attention",
        "MGV_PreviewGuide": "Preview Guide",
        "MGV_FreeLong": "FreeLong",
        "MGV_FreeLongWindows": "FreeLong in Context Windows",
        "MGV_PromptSchedule": "Prompt Schedule",
        "MGV_InterpolateVideo": "Interpolate Video",
        "MGV_UpscaleVideo": "Upscale Video",
        "MGV_SaveLongVideo": "Save Long Video",
        "MGV_MaskGuidedExtend": "Mask-Guided Extend",
        "MGV_PathMasks": "Path Masks",
        "MGV_MaskSequence": "Mask Sequence",
        "MGV_DynamicMaskGuidance": "Dynamic Mask Guidance",
        "MGV_ObjectWords": "Object Words",
        "MGV_MaskMetrics": "Mask Metrics",
        "MGV_FirstFrameLock": "First Frame Lock",
        "MGV_SharedNoise": "Shared Noise",
        "MGV_LampSampler": "LAMP Sampler",
        "MGV_HistogramMatch": "Histogram Match",
        "MGV_AttentionEnergy": "Attention Energy",
        "MGV_CrudeFilm": "Crude Film",
        "MGV_DualClockSampler": "Dual Clock Sampler",
        "MGV_TrainMotion": "Train Motion",
        "MGV_LoadMotion": "Load Motion",
    }
