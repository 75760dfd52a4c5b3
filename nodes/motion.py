"""Motion tuning in a graph, for small jobs, and motion files on a MODEL."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import comfy.model_management as management
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.frame_keys import KeySource
from ..attention_patches.guidance.modes.registry import MODES
from ..host.motion.motion_files import apply_motion, trainable_unet
from ..host.sampling.comfy_video_model import ComfyVideoModel
from ..recipes.given.constants import read_constants
from ..training.motion.architectures import ARCHITECTURES, MODULE_SETS, make_architecture
from ..training.motion.data import find_clips
from ..training.motion.report import loss_curve
from ..training.motion.settings import MaskAugmentation, MotionSettings
from ..training.motion.tuning import MotionJob, tune_motion
from ..video_models.motion.motion_files import read_motion, write_motion
from .support.file_names import MOTION, prefix_problem, save_path
from .support.host import progress
from .support.inputs import background_phrase_input, decimal_input, phrase_list, size_inputs
from .support.types import CATEGORY, OWN, SEED_RANGE, TOYBOX

logger = logging.getLogger(__name__)

# Motion files lie where ComfyUI's users keep LoRA files; those of the kind lora load with core's loader too.
FOLDER = "loras"
BUNDLED = Path(__file__).resolve().parent.parent / "toybox" / "motions"
NONE = "none"
# Of the Toybox's text encoder, which distinguishes its models from LaVie's.
TOYBOX_TEXT_CHANNELS = 64
DEFAULT_MODULES = "self_queries, temporal"


def bundled_motions() -> dict[str, Path]:
    """The motion files that come with the pack, by the names that nodes list."""
    return {f"{TOYBOX} {path.stem}": path for path in sorted(BUNDLED.glob("*.safetensors"))}


class TrainMotion(io.ComfyNode):
    """MGV_TrainMotion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_TrainMotion",
            display_name="Train Motion",
            category=f"{CATEGORY}/motion",
            description=(
                "Tunes a video model to a motion, with a handful of clips and the masks of what moves in them. For "
                "small jobs on the Toybox or LaVie's base model of Load Video Model; long ones belong on the command "
                "line (cli.py train-motion), which keeps checkpoints. Needs the packages peft and accelerate."
            ),
            is_output_node=True,
            inputs=[*_model_inputs(), *_clip_inputs(), *_training_inputs(), *_mask_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the tuned motion in it, at strength 1."),
                io.Image.Output(
                    display_name="loss", tooltip="The loss over the steps, each one and their running mean."
                ),
                io.String.Output(display_name="report", tooltip="Clips, steps, last loss, and where the file is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Before anything is trained."""
        return prefix_problem(filename_prefix, MOTION) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        videos: str,
        masks: str,
        prompt: str,
        phrases: str,
        background_phrase: str,
        filename_prefix: str,
        architecture: str,
        rank: int,
        modules: str,
        steps: int,
        batch: int,
        learning_rate: float,
        seed: int,
        mode: str,
        constants: str,
        key_source: str,
        first_frame: float,
        mask_drop: float,
        flip: float,
        prompt_dropout: float,
        frames: int,
        width: int,
        height: int,
        checkpointing: bool,
    ) -> io.NodeOutput:
        settings = MotionSettings(
            prompt=prompt,
            phrases=tuple(phrase_list(phrases)),
            background_phrase=background_phrase,
            frames=frames,
            width=width,
            height=height,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            first_frame=first_frame,
            prompt_dropout=prompt_dropout,
            flip=flip,
            augmentation=MaskAugmentation(drop=mask_drop),
            mode=mode,
            constants=read_constants(mode, constants),
            key_source="" if key_source == OWN else key_source,
            checkpointing=checkpointing,
            seed=seed,
        )
        kind = {"rank": rank, "modules": names_of(modules)} if architecture == "lora" else {}
        target = _new_path(filename_prefix) if filename_prefix.strip() else None
        result = _tuned((model, clip, vae), (videos, masks), settings, architecture, kind, target)
        lines = [f"{len(result.clips)} clips, {len(result.losses)} steps, loss {result.losses[-1]:.4f} at the last."]
        if target is not None:
            lines.append(_written(result.motion, target))
        tuned = apply_motion(model, result.motion)
        return io.NodeOutput(tuned, _curve(result.losses), "\n".join(lines))


def _tuned(
    parts: tuple[Any, Any, Any],
    folders: tuple[str, str],
    settings: Any,
    architecture: str,
    kind: dict[str, Any],
    target: Path | None,
) -> Any:
    """Run the job; all that it learns through is made outside of the host's inference mode."""
    model, clip, vae = parts
    device = management.get_torch_device()
    with torch.inference_mode(False), torch.enable_grad():
        made = make_architecture(architecture, **kind, seed=settings.seed)
        files = find_clips(*(input_folder(name) for name in folders), settings)
        video_model = ComfyVideoModel(model, clip, vae)
        unet = trainable_unet(model)
        job = MotionJob(video_model, unet, _name_of(model), files, settings, made, device, target=target)
        report = progress(settings.steps)
        return tune_motion(job, progress=lambda done, total, _: report(done, total), encoding=lambda *_: report(0, 1))


def names_of(text: str) -> tuple[str, ...]:
    """Words apart by commas or new lines, without empty ones."""
    return tuple(name.strip() for name in text.replace("\n", ",").split(",") if name.strip())


def input_folder(name: str) -> Path | None:
    """A folder inside of ComfyUI's input folder; None for ``NONE``.

    Raises:
        ValueError: it is not there, or lies elsewhere.
    """
    if name == NONE:
        return None
    root = Path(folder_paths.get_input_directory()).resolve()
    folder = (root / name).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ValueError(f"there is no folder {name!r} in ComfyUI's input folder; put the clips there and refresh.")
    return folder


def _name_of(model: Any) -> str:
    config = model.get_model_object("diffusion_model").config
    if config.picture_model:
        return "Stable Diffusion 1"
    return TOYBOX if config.cross_attention_dim == TOYBOX_TEXT_CHANNELS else "LaVie"


def _new_path(prefix: str) -> Path:
    """A file that does not exist yet; of its folder nothing stays, so that a cancelled run leaves nothing."""
    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    there = root.exists()
    folder, name, number, _ = save_path(prefix, str(root), MOTION)
    path = folder / f"{name}_{number:05}_.safetensors"
    with suppress(OSError):
        for made in path.relative_to(root).parents:
            if made.parts or not there:
                (root / made).rmdir()
    return path


def _written(motion: Any, path: Path) -> str:
    """Write the file; says where it is. A tuned model is not thrown away because its file cannot be written."""
    try:
        write_motion(path, motion.tensors, motion.info)
    except OSError as error:
        logger.warning("NOT WRITTEN: %s", error)
        return f"NOT WRITTEN: {error} The model that comes out has the motion in it."
    return f"written to {Path(FOLDER) / path.relative_to(folder_paths.get_folder_paths(FOLDER)[0])}"


def _curve(losses: list[float]) -> Tensor:
    return torch.from_numpy(np.asarray(loss_curve(losses)).copy()).float()[None] / 255.0


class LoadMotion(io.ComfyNode):
    """MGV_LoadMotion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        motions = [*bundled_motions(), *folder_paths.get_filename_list(FOLDER)] or [NONE]
        return io.Schema(
            node_id="MGV_LoadMotion",
            display_name="Load Motion",
            category=f"{CATEGORY}/motion",
            description=(
                "Puts a tuned motion file into a MODEL, as patches that come off again: the model itself is not "
                "changed. The file knows the model that it belongs to and how its masks were used."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the file was tuned on."),
                io.Combo.Input(
                    "motion_name",
                    options=motions,
                    default=motions[0],
                    tooltip="Toybox motions come with the pack; others are files of Train Motion in models/loras.",
                ),
                decimal_input(
                    "strength",
                    1.0,
                    "0: off; 1: as tuned; above 1 exaggerates the motion, below 0 turns away from it.",
                    least=-2.0,
                    most=2.0,
                    step=0.05,
                ),
                io.Boolean.Input(
                    "any_base",
                    default=False,
                    optional=True,
                    tooltip="Off: the file must have been tuned on these very weights. On: any model of the same "
                    "structure, such as a fine-tuned one, or weights held in another precision.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the motion in it."),
                io.String.Output(
                    display_name="report",
                    tooltip="What the file says of itself: prompt, phrases, frames, mask mode with its constants.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, motion_name: str, strength: float, any_base: bool = False) -> io.NodeOutput:
        path = bundled_motions().get(motion_name) or Path(folder_paths.get_full_path_or_raise(FOLDER, motion_name))
        motion = read_motion(path)
        return io.NodeOutput(apply_motion(model, motion, strength, any_base), described(motion))


def described(motion: Any) -> str:
    """What a motion file says of itself, a line for each thing."""
    info = motion.info
    words = f"prompt: {info.prompt}" + (f" (objects: {', '.join(info.phrases)})" if info.phrases else "")
    constants = ", ".join(f"{name}={value}" for name, value in info.constants.items())
    lines = [
        f"{motion.name}: {info.kind} of {info.base_name}, {info.steps} steps, seed {info.seed}",
        f"clips: {info.frames} frames of {info.width} x {info.height} pixels; first frame given clean in "
        f"{info.first_frame:.0%} of the steps",
        words + (f"; background: {info.background_phrase}" if info.background_phrase else ""),
        f"masks: {info.mode or 'none'}" + (f" ({constants})" if constants else ""),
        f"keys of self-attention: {info.key_source or OWN}",
    ]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in info.details.items())])


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to tune, of Load Video Model; it is not changed."),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Vae.Input("vae", tooltip="Its VAE; encodes the clips once."),
    ]


def _clip_inputs() -> list[io.Input]:
    folders = folder_paths.get_input_subfolders()
    return [
        io.Combo.Input(
            "videos",
            options=folders or [NONE],
            default=(folders or [NONE])[0],
            tooltip="Folder of videos inside of ComfyUI's input folder, 2 or more; 8 to 16 are usual. horse.txt beside "
            "horse.mp4 may hold its own prompt, then its phrases, one a line, and background: ...",
        ),
        io.Combo.Input(
            "masks",
            options=[NONE, *folders],
            default=NONE,
            tooltip="Folder of masks by the videos' names (video, PNG, .npy, or a folder of PNGs); none tunes without.",
        ),
        io.String.Input(
            "prompt", default="", multiline=True, tooltip="Of clips that bring no words of their own; empty if all do."
        ),
        io.String.Input(
            "phrases",
            default="",
            tooltip="Words of the prompt that name the masked objects, one per object, by commas.",
        ),
        background_phrase_input(),
        io.String.Input(
            "filename_prefix",
            default="motion/motion",
            tooltip="Folder and beginning of the file's name inside of models/loras; a number follows. Empty: no file.",
        ),
    ]


def _training_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "architecture",
            options=list(ARCHITECTURES),
            default="lora",
            tooltip="lora: small updates of attention, for video models. lamp: new layers over time, 0.25 billion "
            "numbers for LaVie.",
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=1,
            max=256,
            tooltip="Of lora: more holds more of the motion and of the clips' looks.",
        ),
        io.String.Input("modules", default=DEFAULT_MODULES, tooltip=f"Layers of lora, of {', '.join(MODULE_SETS)}."),
        io.Int.Input(
            "steps",
            default=400,
            min=1,
            max=100000,
            tooltip="Of the optimizer. Too few: no motion; too many: the clips.",
        ),
        io.Int.Input("batch", default=4, min=1, max=64, tooltip="Clips per step; more is steadier and slower."),
        io.Float.Input(
            "learning_rate",
            default=0.001,
            min=0.000001,
            max=1.0,
            step=0.0001,
            round=0.0000001,
            tooltip="0.001 to 0.002 for the Toybox, 0.0001 for LaVie; too high breaks the video.",
        ),
        io.Int.Input("seed", default=1, tooltip="Of all chance: same seed, same file.", **SEED_RANGE),
    ]


def _mask_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode", options=list(MODES), default="dmg", tooltip="Mask mode that is active in training; sample alike."
        ),
        io.String.Input(
            "constants", default="", tooltip="Of the mode where they differ from its own: gamma_cross=20, beta=3."
        ),
        io.Combo.Input(
            "key_source",
            options=[OWN, *get_args(KeySource)],
            default=OWN,
            tooltip="Frames whose keys self-attention reads in training; sample alike.",
        ),
        decimal_input(
            "first_frame",
            1.0,
            "How often the first frame is given clean: 1 for use with First Frame Lock, less for videos without.",
        ),
        decimal_input(
            "mask_drop", 0.1, "How often a clip is seen without masks: 0 needs masks ever after, 1 never uses them."
        ),
        decimal_input("flip", 0.5, "How often clips are mirrored; 0 where left and right matter."),
        decimal_input("prompt_dropout", 0.1, "How often the prompt is left out; keeps cfg working."),
        io.Int.Input(
            "frames", default=8, min=2, max=1024, tooltip="Of a clip as the model sees it; Toybox 8, LaVie 16."
        ),
        *size_inputs("Pixels; videos are cut and resized to it."),
        io.Boolean.Input("checkpointing", default=False, tooltip="On: less memory, a third more time."),
    ]
