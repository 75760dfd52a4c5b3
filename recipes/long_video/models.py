"""The models that a long video is made with, named or from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..model_sets import check_device
from ..protocols import Interpolator, Upscaler, VideoModel

TOYBOX = "toybox"
TOYBOX_JOINT = "toybox-joint"


@dataclass(frozen=True)
class ModelFiles:
    """Which models to open.

    Attributes:
        model: ``toybox``, ``toybox-joint``, a file of LaVie's base model, or a Stable Diffusion 1 checkpoint or folder.
        interpolation: a file of LaVie's interpolation model; None leaves that stage out.
        upscaling: a file of LaVie's upscaler; None leaves that stage out.
        parts: Stable Diffusion 1 checkpoint or folder, for text encoder and VAE of the first two; None where the model
            includes them.
        upscaling_parts: Stable Diffusion x4 upscaler checkpoint or folder, for those of the upscaler.
        tokenizer: folder with one, where the parts are a single file.
    """

    model: str | Path = TOYBOX
    interpolation: Path | None = None
    upscaling: Path | None = None
    parts: Path | None = None
    upscaling_parts: Path | None = None
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        for name, path, wanted, parts in (
            (
                "the model",
                None if self.model in (TOYBOX, TOYBOX_JOINT) else self.model,
                "Stable Diffusion 1",
                self.parts,
            ),
            ("the interpolation model", self.interpolation, "Stable Diffusion 1", self.parts),
            ("the upscaler", self.upscaling, "Stable Diffusion x4 upscaler", self.upscaling_parts),
        ):
            if path is not None and not Path(path).exists():
                choice = f"; take {TOYBOX}, {TOYBOX_JOINT} or a file" if name == "the model" else "; check the path"
                raise ValueError(f"{name} is {str(path)!r}, which does not exist{choice}.")
            # A Stable Diffusion checkpoint in the model's place includes them; opening it shows whether.
            if path is not None and parts is None and name != "the model":
                raise ValueError(
                    f"{Path(path).name} has no text encoder and VAE of its own; "
                    f"give a {wanted} checkpoint or folder as its parts."
                )


@dataclass(frozen=True, eq=False)
class LongVideoModels:
    """What a long video is made with.

    Attributes:
        name: of the first model, for the report.
        model: makes the video.
        interpolator: fills in frames; None without that stage.
        upscaler: enlarges it; None without that stage.
    """

    name: str
    model: VideoModel
    interpolator: Interpolator | None = None
    upscaler: Upscaler | None = None


def open_long_video_models(files: ModelFiles, device: str | None = None) -> LongVideoModels:
    """Open them all, so that what is wrong with a file is known before the first step.

    Args:
        files: which.
        device: of the computation; None is the CPU.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: when the files or this installation lack something.
    """
    from ...video_models.joint.model import load_joint_toybox
    from ...video_models.lavie.models import open_interpolator, open_lavie, open_upscaler
    from ...video_models.toybox import load_toybox

    chosen, options = check_device(device), {"tokenizer": files.tokenizer}
    if files.model == TOYBOX:
        model, name = load_toybox(chosen), TOYBOX
    elif files.model == TOYBOX_JOINT:
        model, name = load_joint_toybox(chosen), TOYBOX_JOINT
    else:
        model, name = open_lavie(files.model, files.parts, chosen, **options), Path(files.model).name
    interpolator = upscaler = None
    if files.interpolation is not None:
        interpolator = open_interpolator(files.interpolation, files.parts, chosen, **options)
    if files.upscaling is not None:
        upscaler = open_upscaler(files.upscaling, files.upscaling_parts, chosen, **options)
    return LongVideoModels(name, model, interpolator, upscaler)
