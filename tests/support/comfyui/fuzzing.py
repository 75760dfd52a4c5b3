"""Random inputs for nodes, drawn from their schemas, and what a node may answer."""

from __future__ import annotations

import ast
import os
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fuzzed_core_types import MAKERS
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# Seconds that a call may take.
LONGEST_CALL = 60
# The largest number that is drawn, by the name of the input: more is only more of the same work.
LARGEST = {
    **{"frames": 12, "width": 96, "height": 96, "size": 128, "rounds": 2, "steps": 3, "batch": 2, "batch_size": 2},
    **{"rank": 4, "seed": 2**53, "start": 12, "count": 16, "context_length": 8},
}
PROMPTS = ("a red ball moves left on sand", "a red ball moves left and a blue square moves right on sand", "a red ball")
# Texts that are good for an input of that name; every other text may come to every input.
TEXTS = {
    "phrases": ("red ball", "red ball, blue square", "sand", "cat"),
    "phrase": ("red ball",),
    "background_phrase": ("sand", ""),
    "prompt": PROMPTS,
    "label": ("red ball", "ball"),
    "labels": ("red ball", "blue"),
    "ids": ("1", "1, 2", "2-1", "7"),
    "blocks": ("all", "mid", "up, down", "mid,up", "0"),
    "bands": ("1, 2, 4", "1", "4, 2", "0"),
    "constants": ("blocks=all", "end_percent=1", "beta=3", "gamma_cross=-1", "x"),
    "frame_strength": ("0: 1, 3: 0.5", "0: nan", "5"),
    "schedule": ("0: a red ball on sand", "0: a red ball\n4: a blue ball", "4: a", "0.5: a"),
    "points": ('[{"x": 3, "y": 4}]', '[{"x": 1e9, "y": 0}]', '[{"x": 3}]'),
    "paths": (
        '[{"label": "red ball", "keyframes": [{"frame": 0, "x": 0.5, "y": 0.5, "width": 0.4, "height": 0.4}]}]',
        '[{"keyframes": [{"frame": 0, "x": 2, "y": -1, "width": 0.1, "height": 3}, {"frame": 9, "x": 0, "y": 0}]}]',
        '[{"keyframes": []}]',
    ),
    "modules": ("self_queries, temporal", "cross_queries", "nothing"),
    "filename_prefix": ("video/a", "a%width%", "a/b/c", "../outside", "a" * 300, "a\0b"),
    "name": ("", "film/a", "b" * 300, "c\0d", "../d"),
}
TEXTS["negative_points"], TEXTS["negative_prompt"] = TEXTS["points"], ("", *PROMPTS)
ODD_TEXTS = (
    "",
    " ",
    "\n",
    ",,;.",
    "[]",
    "{}",
    "null",
    "nan",
    "1e400",
    "9" * 400,
    "w" * 300,
    "\u00e9\u4e2d",
    "[1, 2",
    "%s %d",
)
# Of which a node takes exactly one.
ONE_OF = {
    "MGV_RefineMasks": ("tracks", "mask"),
    "MGV_MaskToAttentionBias": ("tracks", "mask"),
    "MGV_DynamicMaskGuidance": ("tracks", "mask"),
    "MGV_MaskSequence": ("tracks", "mask"),
    "MGV_MaskMetrics": ("tracks", "mask"),
    "MGV_SharedNoise": ("tracks", "mask"),
    "MGV_ToSEGS": ("tracks", "boxes"),
    "MGV_FirstFrameLock": ("first_frame", "image"),
}
# Inputs that are of use together, or of one picture.
TOGETHER = {"detector": "segmenter", "first_frame": "model", "boxes": "image"}
ONE_PICTURE = {("MGV_FirstFrameLock", "image"), ("MGV_HistogramMatch", "reference")}
# Of core there are many more, which are not ours to test.
CHOSEN = {
    "sampler_name": ("ddim", "euler", "dpmpp_2m", "lcm"),
    "scheduler": ("ddim_uniform", "normal", "simple", "karras"),
}
ODD_BOXES = (
    None,
    {},
    {"x": 1, "y": 1, "width": 5, "height": 5, "score": None},
    {"x": None, "y": 1, "width": 5, "height": 5},
    {"x": "left", "y": 1, "width": 5, "height": 5},
    {"x": 10**400, "y": 1, "width": 5, "height": 5},
    {"x": 1, "y": 1, "width": float("nan"), "height": 5},
    {"x": 1, "y": 1, "width": 0, "height": 5},
    {"x": torch.tensor(2.0), "y": 1, "width": 5, "height": torch.ones(2)},
    {1: 2, "x": 3},
    "box",
)
ODD_BBOX = (
    None,
    [],
    (),
    torch.tensor(3.0),
    torch.zeros(0, 4),
    [None, [1, 2, 3, 4]],
    [10**400] * 4,
    "1, 2, 3, 4",
    [1, [2]],
)
ODD_SEGS = (((0, 0), []), ((8, 8), None), None, ((8, 8), [3]), [((8, 8), [])], ((-4, 8), []), ((10**9, 10**9), []))


def node_ids() -> list[str]:
    """Ids of all nodes, read from the source, so that collecting needs no host."""
    for statement in ast.walk(ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "NODE_CLASS_MAPPINGS":
            return [key.value for key in statement.value.keys]
    return []


@dataclass(eq=False)
class Parts:
    """Models and the like, which are made once.

    Attributes:
        model, clip, vae: of a tiny text-to-video model.
        stages: other models with clip and vae, by the names of the nodes that need them.
        detector, segmenter: of the Toybox.
        segment: class of a segment, with the fields of Impact Pack's.
    """

    model: Any
    clip: Any
    vae: Any
    stages: dict[str, Any]
    detector: Any
    segmenter: Any
    segment: Any


@dataclass(eq=False)
class Call:
    """Random inputs of one call of a node; inputs of a film mostly agree in length and size.

    Half of the calls are tame, so that nodes do their work and are not only asked to refuse it.

    Args:
        node: its class.
        parts: shared by all calls.
        seed: of all chance, which names the call.
    """

    node: Any
    parts: Parts
    seed: str
    inputs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.chance.randrange(2**31))
        self.tame = self.likely(0.5)
        self.frames = self.chance.choice((1, 2, 4, 5, 8))
        self.height, self.width = self.chance.choice(((32, 32), (16, 16), (32, 48), (24, 16), (33, 17)))
        schema = self.node.define_schema()
        if self.tame and schema.node_id == "MGV_MaskGuidedExtend":
            # A single square mask is for films of every length.
            self.frames, self.height, self.width = 1, 32, 32
        self.name = schema.node_id
        self.makers: dict[str, Callable[[], Any]] = {
            "IMAGE": self.image, "MASK": self.mask, "LATENT": self.latent, "NOISE": self.noise,
            "CONDITIONING": self.conditioning, "MGV_TRACKS": self.tracks, "MGV_GUIDE": self.guide,
            "MGV_PROMPTS": self.prompts, "BOUNDING_BOX": self.boxes, "BBOX": self.bbox, "SEGS": self.segs,
            **{kind: partial(make, self) for kind, make in MAKERS.items()},
            "MODEL": lambda: self.stage.model, "CLIP": lambda: self.stage.clip, "VAE": lambda: self.stage.vae,
            "MGV_DETECTOR": lambda: self.parts.detector, "MGV_SEGMENTER": lambda: self.parts.segmenter,
        }  # fmt: skip
        for entry in schema.inputs:
            if not entry.optional or self.likely(0.5):
                self.inputs[entry.id] = self.value(entry)
        if self.tame:
            self.make_usual({entry.id: entry for entry in schema.inputs})

    def make_usual(self, entries: dict[str, Any]) -> None:
        """One of those of which there must be one, and what is of use together."""
        pair = ONE_OF.get(self.name)
        if pair is not None:
            chosen = self.chance.choice(pair)
            self.inputs.setdefault(chosen, self.value(entries[chosen]))
            self.inputs.pop(pair[1 - pair.index(chosen)], None)
        for first, second in TOGETHER.items():
            if first in self.inputs and second in entries:
                self.inputs.setdefault(second, self.value(entries[second]))
        if self.name == "MGV_FirstFrameLock" and "image" in self.inputs:
            self.inputs["vae"] = self.parts.vae
        if self.name == "MGV_MaskGuidedExtend":
            self.inputs |= {"width": 32, "height": 32, "frames": 4}
        if self.name == "MGV_PathMasks" and "points" in self.inputs:
            self.frames, self.height, self.width = (self.inputs[side] for side in ("frames", "height", "width"))
            self.inputs["points"] = self.makers["TRACKS"]()
        if self.name == "MGV_MaskMetrics" and "detector" not in self.inputs:
            self.inputs["found"] = self.tracks()
        for node, name in ONE_PICTURE:
            if node == self.name and name in self.inputs:
                self.inputs[name] = self.inputs[name][:1]

    @property
    def stage(self) -> Any:
        """What has this node's model, clip and vae."""
        return self.parts.stages.get(self.name, self.parts)

    def likely(self, share: float) -> bool:
        return self.chance.random() < share

    def value(self, entry: Any) -> Any:
        """Something that the host would let through for an input."""
        kind = self.chance.choice(entry.get_io_type().split(","))
        if kind in self.makers:
            return self.makers[kind]()
        if entry.id == "download":
            return False
        usual = self.tame and self.likely(0.6)
        if kind == "BOOLEAN":
            return entry.default if usual else self.likely(0.5)
        if kind == "COMBO":
            wanted = CHOSEN.get(entry.id, entry.options)
            if self.name == "MGV_TrainMotion" and entry.id == "videos":
                return "clips"
            return entry.default if usual else self.chance.choice([one for one in entry.options if one in wanted])
        if kind == "STRING":
            if entry.id == "prompt" and self.tame:
                return PROMPTS[0]
            if usual and entry.default is not None:
                return entry.default
            if self.tame:
                return TEXTS.get(entry.id, ("ball",))[0]
            good = TEXTS.get(entry.id, ODD_TEXTS)
            return self.chance.choice(good if self.likely(0.7) else ODD_TEXTS)
        least, most = entry.min, min(entry.max, LARGEST.get(entry.id, entry.max))
        whole = kind == "INT"
        if usual:
            return min(most, entry.default)
        edges = [value for value in (least, most, entry.default, 1, 2) if least <= value <= most]
        if self.likely(0.5):
            return self.chance.choice(edges) if whole else float(self.chance.choice(edges))
        # Large numbers are as rare as small ones are of interest.
        near = min(most, max(least, entry.default) + 12)
        value = self.chance.uniform(least, near)
        step = entry.step or 1
        return int(value) // step * step if whole else round(value, 2)

    def sized(self) -> tuple[int, int, int]:
        """Frames, height and width: mostly those of the call."""
        if self.tame or self.likely(0.7):
            return self.frames, self.height, self.width
        return tuple(self.chance.choice(sides) for sides in ((1, 2, 3, 9), (1, 3, 7, 40, 64), (1, 3, 8, 40, 64)))

    def random(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self.generator)

    def odd_numbers(self, values: Tensor) -> Tensor:
        """Now and then values or a type that no node should make."""
        change = self.chance.choice(("nan", "inf", "uint8", "bool", "half", "outside", "empty"))
        if change in ("nan", "inf"):
            values.flatten()[self.chance.randrange(values.numel())] = float(change)
        if change == "empty":
            return values[:, :0] if self.likely(0.5) else values[:0]
        if change == "outside":
            return values * 8 - 4
        types = {"uint8": torch.uint8, "bool": torch.bool, "half": torch.float16}
        return (values * 255 if change == "uint8" else values).to(types[change]) if change in types else values

    def image(self) -> Tensor:
        pictures = self.random(*self.sized(), 4 if self.likely(0.1) else 3)
        return self.odd_numbers(pictures) if self.likely(0.05 if self.tame else 0.3) else pictures

    def mask(self) -> Tensor:
        frames, height, width = self.sized()
        if self.likely(0.1):
            frames = 1
        mask = torch.zeros(frames, height, width)
        if self.likely(0.9):
            mask[:, height // 4 : -(-3 * height // 4), width // 4 : -(-3 * width // 4)] = 1.0
        if self.likely(0.3):
            mask = self.random(frames, height, width)
        return self.odd_numbers(mask) if self.likely(0.05 if self.tame else 0.3) else mask

    def tracks(self) -> Any:
        from mask_guided_video.perception.tracks import Tracks

        frames, height, width = self.sized()
        count = self.chance.choice((0, 1, 1, 2, 3))
        masks = (self.random(count, frames, height, width) > 0.6).float()
        if self.likely(0.3):
            masks = masks * self.random(count, frames, height, width)
        masks[:, :: self.chance.choice((1, 2, 5))] *= self.chance.choice((0.0, 1.0))
        return Tracks.from_masks(masks, tuple(("red ball", "blue square", "")[:count]))

    def guide(self) -> Any:
        from mask_guided_video.nodes.guidance import MaskToAttentionBias
        from mask_guided_video.nodes.mask_modes import DynamicMaskGuidance

        masks = torch.zeros(1, self.frames, self.height, self.width)
        masks[..., self.height // 4 : self.height // 2, self.width // 4 : self.width // 2] = 1
        given = {"mask": masks[0], "phrases": "red ball", "strength": 1.0, "end_percent": 1.0, "start_percent": 0.0}
        if self.name != "MGV_MaskGuidedExtend" and self.likely(0.5):
            mode = self.chance.choice(("focus", "focus_fg", "separate", "cross_text"))
            return MaskToAttentionBias.execute(**given, mode=mode, blocks="all", rows="both", hard=False).args[0]
        own = {"background_phrase": "sand", "key_source": "mode's own", "blocks": "", "rows": "mode's own"}
        mode = self.chance.choice(("dmg", "peekaboo", "trailblazer", "videograin"))
        more = {"frame_strength": "", "time_pooling": "max", "constants": "", "mode": mode}
        return DynamicMaskGuidance.execute(**given, **own, **more).args[0]

    def prompts(self) -> Any:
        from mask_guided_video.perception.boxes import Box
        from mask_guided_video.perception.prompts import ObjectPrompt

        frame = self.chance.randrange(self.frames + 1)
        return (ObjectPrompt(frame, 1, Box(2.0, 2.0, 9.0, 8.0), label="red ball"),)

    def latent(self) -> dict[str, Any]:
        frames, height, width = self.sized()
        samples = torch.randn(
            self.chance.choice((1, 1, 2)), 4, frames, max(1, height // 4), max(1, width // 4), generator=self.generator
        )
        if self.likely(0.1):
            samples = samples[0].movedim(1, 0)
        elif self.likely(0.5):
            samples = torch.zeros_like(samples)
        return {"samples": samples}

    def noise(self) -> Any:
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(self.chance.randrange(2**32))

    def conditioning(self) -> Any:
        clip = self.makers["CLIP"]()
        return clip.encode_from_tokens_scheduled(clip.tokenize(self.chance.choice(PROMPTS)))

    def box(self) -> Any:
        if not self.tame and self.likely(0.2):
            return self.chance.choice(ODD_BOXES)
        sides = [self.chance.uniform(-4, 40) for _ in range(2)] + [self.chance.uniform(0.5, 40) for _ in range(2)]
        box = dict(zip(("x", "y", "width", "height"), sides, strict=True))
        return {**box, "label": "red ball", "score": self.chance.random()} if self.likely(0.7) else box

    def boxes(self) -> Any:
        nested = [[self.box() for _ in range(self.chance.randrange(3))] for _ in range(self.sized()[0])]
        return nested if self.likely(0.7) else self.box() if self.likely(0.3) else nested[0]

    def bbox(self) -> Any:
        if self.likely(0.3):
            return self.chance.choice(ODD_BBOX)
        rows = [[self.chance.uniform(0, 20) for _ in range(4)] for _ in range(self.frames)]
        rows = [[x, y, x + wide, y + high] for x, y, wide, high in rows]
        return self.chance.choice((rows, [rows], torch.tensor(rows), rows[0], [[row] for row in rows]))

    def segs(self) -> Any:
        if self.likely(0.3):
            return self.chance.choice(ODD_SEGS)
        frames, height, width = self.sized()
        right, low = max(1, width // 2), max(1, height // 2)
        values = {
            "cropped_image": None, "cropped_mask": self.random(low, right).numpy(), "confidence": 0.7,
            "crop_region": [0, 0, right, low], "bbox": [0, 0, right, low], "label": "ball", "control_net_wrapper": None,
        }  # fmt: skip
        if self.likely(0.3):
            values["cropped_mask"] = self.random(frames, low, right)
        if self.likely(0.3):
            name = self.chance.choice(("cropped_mask", "confidence", "crop_region", "bbox", "label"))
            values[name] = self.chance.choice((None, "x", float("nan"), [1, 2], [10**400] * 4, torch.zeros(2)))
        return (height, width), [self.parts.segment(**values)]

    def described(self) -> str:
        """The inputs, short enough to read."""
        lines = [f"{name} = {described(value)}" for name, value in self.inputs.items()]
        return "\n  ".join([f"{self.name} with FUZZ seed {self.seed!r}:", *lines])


def described(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict) and "samples" in value:
        return f"latent {list(value['samples'].shape)}"
    if hasattr(value, "masks"):
        return f"{type(value).__name__} {list(value.masks.shape)}"
    try:
        return repr(value)[:300]
    except ValueError:
        return type(value).__name__


def is_sentence(error: BaseException) -> bool:
    """Whether an error is one that this pack, or the host's check of folders, raises on purpose: one readable line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error)
    if "outside the output folder" in text:
        return True
    ours = Path(frame.filename).is_relative_to(ROOT) and (frame.line or "").startswith("raise")
    return ours and 20 < len(text) and text.rstrip().endswith(".")


def faults_of(call: Call, outputs: tuple[Any, ...]) -> list[str]:
    """What is wrong with what a node returned; empty when nothing is."""
    faults = []
    for output, values in zip(call.node.define_schema().outputs, outputs, strict=True):
        for value in values if output.is_output_list else [values]:
            faults += [
                f"{output.display_name or output.io_type}: {fault}" for fault in _faults(output.io_type, value, call)
            ]
    return faults


def _faults(kind: str, value: Any, call: Call) -> list[str]:
    if kind == "LATENT":
        return [] if bool(torch.isfinite(value["samples"]).all()) else ["latents that are not finite"]
    if kind == "FLOAT":
        return [] if 0.0 <= value <= 1.0 else [f"{value} is not in 0..1"]
    if kind not in ("IMAGE", "MASK"):
        return []
    wanted = 4 if kind == "IMAGE" else 3
    if value.ndim != wanted or not value.is_floating_point() or 0 in value.shape:
        return [f"{value.dtype} {list(value.shape)}"]
    if kind == "IMAGE":
        # A fourth channel, which some loaders give, passes as it is.
        value = value[..., :3]
    if not (0.0 <= float(value.min()) and float(value.max()) <= 1.0):
        return [f"values from {float(value.min())} to {float(value.max())}"]
    frames = mask_frames(call) if kind == "MASK" else None
    return [] if frames in (None, len(value)) else [f"{len(value)} masks for {frames} frames"]


def mask_frames(call: Call) -> int | None:
    """How many masks a node must give for its inputs: as many as there are frames."""
    given = call.inputs
    if call.name == "MGV_PathMasks":
        return given["frames"]
    frames = [_frames(given[name]) for name in ("image", "tracks", "mask") if name in given]
    if call.name == "MGV_MaskSequence":
        return given["frames"] or frames[0] - given["start"]
    return frames[0] if frames else None


def _frames(value: Any) -> int:
    """Of a film, masks, tracks, or core's track data."""
    if isinstance(value, dict):
        return value["n_frames"]
    return (1 if value.ndim == 2 else len(value)) if isinstance(value, Tensor) else value.frames


def call_count(usual: int) -> int:
    """Calls of a node: ``FUZZ_CALLS``, else few."""
    return int(os.environ.get("FUZZ_CALLS", usual))


def first_seed() -> int:
    """Of all calls: ``FUZZ_SEED``, else always the same."""
    return int(os.environ.get("FUZZ_SEED", 0))
