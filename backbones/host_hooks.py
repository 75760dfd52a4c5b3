"""Install a patch stack in a ComfyUI model: which calls of the host tell the sites what they must know.

At the start of a run (``OUTER_SAMPLE``) the guides are compared with the video, and the run's facts are put into the
options of that run; at each call of the model (``APPLY_MODEL``) the family of the model puts the sites of that call
into that call's options. Nothing is written into the model, its options or its weights.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention_patches.errors import ModelNotSupported
from ..attention_patches.kernels.torch_attention import OVERRIDE_KEY
from ..attention_patches.patch import AttentionPatch, Patch, Run
from ..attention_patches.site import AttentionKind
from ..attention_patches.stack import PatchStack
from ..video_models.sampling.window_frames import CALL_FRAMES_KEY, window_frames
from .block_sites import BlockMarkers
from .family import Family, ModelCall, text_tokens
from .nested_latents import SHAPES_KEY, video_size
from .override_chain import STACKS_KEY, OverrideChain, hung_stacks
from .window_runs import check_window_call, kept_pictures_note, pictures_beside, prepare_windows

logger = logging.getLogger(__name__)

# Under this name our callbacks and wrappers are known to the host.
HOOK_KEY = "mask_guided_video"
# Where a run's facts are in ``transformer_options``, and the length of the clip for models that make their own sites.
RUN_KEY = "mask_guided_video_run"
CLIP_FRAMES_KEY = "clip_frames"
# Halvings until a place in the schedule is known to a millionth.
BISECTIONS = 24


@dataclass(eq=False)
class RunFacts:
    """What holds for one run of a sampler.

    Attributes:
        film_frames: of the whole clip, without reference pictures before and guide pictures after it; 0 when unknown.
        prompts: name of the prompt of each condition, by the host's ``uuid`` of it.
        leading_frames: see ``Family.leading_frames``.
        model_calls: how many calls of the model there were.
        expected: kinds of attention that the blocks of the model make and that are wanted.
        found: kinds of attention of which a call was recognised.
        notes: what was said of calls that cannot be guided.
    """

    film_frames: int
    prompts: Mapping[Any, str]
    leading_frames: int = 0
    model_calls: int = 0
    expected: set[AttentionKind] = field(default_factory=set)
    found: set[AttentionKind] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    progress: dict[float, float] = field(default_factory=dict)
    # A host with several devices runs the chunks of a step in one thread each.
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> RunFacts:
        return self

    def count_model_call(self) -> None:
        """Take note of a call of the model."""
        with self.lock:
            self.model_calls += 1

    def note(self, message: str) -> None:
        """Log what cannot be guided, once in a run."""
        with self.lock:
            said = message in self.notes
            self.notes.add(message)
        if not said:
            logger.warning(message)

    def progress_at(self, model_sampling: Any, sigma: float) -> float:
        """``schedule_progress``, computed once per noise level."""
        # Threads that compute it at the same time find the same.
        if sigma not in self.progress:
            self.progress[sigma] = schedule_progress(model_sampling, sigma)
        return self.progress[sigma]


def hang_patches(model: Any, patches: Sequence[Patch], family: Family, network: Any) -> Any:
    """Return a clone of a model whose attention calls run through patches.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        patches: outermost first, at least one.
        family: of the model.
        network: its diffusion model.
    """
    from comfy.ldm.modules.attention import optimized_attention
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    patched = model.clone()
    options = patched.model_options["transformer_options"]
    stack = PatchStack(patches, options.get(OVERRIDE_KEY), optimized_attention)
    options[OVERRIDE_KEY] = stack.override
    options[STACKS_KEY] = hung_stacks(options, stack)
    markers, overrides = BlockMarkers(), OverrideChain()

    def run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _run(executor, family, network, noise, *args, **kwargs)

    def call_model(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _call_model(executor, family, network, (markers, overrides), x, t, *args, **kwargs)

    def release(*_: Any, **__: Any) -> None:
        stack.release()
        markers.release()
        overrides.release()

    patched.add_callback_with_key(CallbacksMP.ON_CLEANUP, HOOK_KEY, release)
    # One of each serves all stacks of a model.
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, run), (WrappersMP.APPLY_MODEL, call_model)):
        patched.remove_wrappers_with_key(kind, HOOK_KEY)
        patched.add_wrapper_with_key(kind, HOOK_KEY, wrapper)
    return patched


def _tell_what_needs_whole_clips(patches: Sequence[AttentionPatch], family: Family, facts: RunFacts) -> None:
    """Name the patches that choose frames for others to meet, where each frame is a call of its own."""
    for patch in patches:
        if patch.chooses_frames:
            facts.note(
                f"{patch.chooses_frames} has no effect on the self-attention of this {family.name} model while a pose "
                "video drives it, since each frame has a call of its own there; guides act as elsewhere."
            )


def film_extras(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the conditions say of the video, all of them together."""
    return {name: value for group in conds.values() for cond in group or () for name, value in cond.items()}


def _rows_before(family: Family, facts: RunFacts, positive: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows of text before those of each positive prompt, by its name; without prompts of which nobody knows it here."""
    if not family.prompt_ends_text:
        return {}
    found = {facts.prompts[cond["uuid"]]: family.text_before(cond) for cond in positive}
    return {name: rows for name, (rows, texts) in found.items() if not texts}


def _steps(facts: RunFacts, model_sampling: Any, sigmas: Any) -> list[float]:
    """Where in the schedule the steps of a run are; empty when unknown."""
    if not isinstance(sigmas, Tensor):
        return []
    return [facts.progress_at(model_sampling, float(sigma)) for sigma in sigmas[:-1]]


def _run(executor: Any, family: Family, network: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Wrap a run: check the guides, put the run's facts into its options, warn where guidance reached nothing."""
    guider = executor.class_obj
    extras = film_extras(guider.conds)
    leading_frames = family.leading_frames(network, extras)
    size = video_size(noise, kwargs.get(SHAPES_KEY))
    film_frames = family.film_frames(network, size, extras) - leading_frames
    facts = RunFacts(film_frames, prompt_names(guider.conds), leading_frames)
    options = guider.model_options.setdefault("transformer_options", {})
    options[RUN_KEY] = facts
    prepare_windows(guider.model_options, noise)
    positive = [cond for cond in guider.conds.get("positive") or () if cond.get("uuid") in facts.prompts]
    lengths = {facts.prompts[cond["uuid"]]: family.text_rows(cond["cross_attn"].shape[1]) for cond in positive}
    sampler = args[1] if len(args) > 1 else kwargs.get("sampler")
    sigmas = args[2] if len(args) > 2 else kwargs.get("sigmas")
    problem = family.sampler_problem(network, sampler)
    if problem:
        raise ModelNotSupported(problem)
    progress = _steps(facts, guider.model_patcher.get_model_object("model_sampling"), sigmas)
    about = Run(
        film_frames, size[-2], size[-1], family.latent_time, lengths, _rows_before(family, facts, positive), progress
    )
    for stack in options.get(STACKS_KEY, ()):
        for patch in stack.patches:
            patch.check_run(about)
        if family.asks_by_frame(network, extras):
            _tell_what_needs_whole_clips(stack.patches, family, facts)
    result = executor(noise, *args, **kwargs)
    if facts.model_calls and family.finds_sites:
        _tell_what_was_not_found(facts, family)
    return result


def _tell_what_was_not_found(facts: RunFacts, family: Family) -> None:
    """Say which kinds of attention of a run were not recognised, in one sentence."""
    missing = facts.expected - facts.found if facts.found else {"attention"}
    if not missing:
        return
    names = " and ".join(sorted(kind if kind == "attention" else f"{kind}-attention" for kind in missing))
    logger.warning(
        "no call of the %s of %s was recognised, so guidance had no effect in it: another node replaces the attention "
        "of this model; take that node out, or put it before Patch Attention.",
        *(names, family.name),
    )


def _call_model(
    executor: Any,
    family: Family,
    network: Any,
    made: tuple[BlockMarkers, OverrideChain],
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wrap a call of the model: put the sites of this call into its options."""
    options = dict(transformer_options or {})
    facts = options.get(RUN_KEY) or RunFacts(0, {})
    facts.count_model_call()
    chunks = tuple(options.get("cond_or_uncond") or (0,))
    extras = {**kwargs, "control": control}
    sigma = float(t.flatten()[0])
    size = video_size(x, extras.get(SHAPES_KEY))
    per_chunk = (size[0] // len(chunks), *size[1:]) if family.frame_axis == 0 else size
    film_frames = family.film_frames(network, per_chunk, extras)
    check_window_call(executor.class_obj, x, len(chunks), options, extras)
    pictures = pictures_beside(film_frames, c_concat, extras)
    note = kept_pictures_note(options) if pictures else None
    if note:
        facts.note(note)
    leading_frames, frames = split_frames(window_frames(options, film_frames, pictures), facts.leading_frames)
    clip_frames = facts.film_frames or max(frames, default=0) + 1
    call = ModelCall(
        latents=size,
        text_length=text_tokens(c_crossattn),
        extras=extras,
        chunks=chunks,
        prompts=tuple(facts.prompts.get(uuid, "") for uuid in options.get("uuids") or ()),
        frames=frames,
        clip_frames=clip_frames,
        leading_frames=leading_frames,
        progress=facts.progress_at(executor.class_obj.model_sampling, sigma),
        sigma=sigma,
        expected=facts.expected.add,
        found=facts.found.add,
        note=facts.note,
    )
    options[CLIP_FRAMES_KEY] = clip_frames
    options[CALL_FRAMES_KEY] = frames
    markers, overrides = made
    overrides.complete(options)
    family.prepare(network, call, options, markers)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def split_frames(indices: Sequence[int], leading_frames: int) -> tuple[int, tuple[int, ...]]:
    """Tell reference pictures at the beginning of a clip from the video's frames.

    Args:
        indices: of the frames of a call in the whole clip.
        leading_frames: how many of the clip's first frames are reference pictures.

    Returns:
        How many of them the call begins with, and where the others stand in the video.

    Raises:
        ValueError: a reference picture stands between frames of the video.
    """
    here = next((place for place, index in enumerate(indices) if index >= leading_frames), len(indices))
    frames = tuple(index - leading_frames for index in indices[here:])
    if frames and min(frames) < 0:
        raise ValueError(
            "a context window runs over the end of the video to the reference picture before it; turn its closed loop "
            "off, or choose a schedule that is not looped."
        )
    return here, frames


def prompt_names(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[Any, str]:
    """Name the prompt of each condition of a guider, by the host's ``uuid`` of the condition."""
    return {
        cond["uuid"]: prompt_name(cond["cross_attn"])
        for group in conds.values()
        for cond in group or ()
        if "uuid" in cond and isinstance(cond.get("cross_attn"), Tensor)
    }


def prompt_name(embedding: Tensor) -> str:
    """Name a prompt by what its text encoder made of it: equal embeddings have equal names."""
    data = embedding.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(data.numpy().tobytes() + repr(tuple(data.shape)).encode()).hexdigest()


def schedule_progress(model_sampling: Any, sigma: float) -> float:
    """Where in the schedule a noise level stands: the ``percent`` whose ``percent_to_sigma`` it is, 0..1.

    Args:
        model_sampling: ComfyUI's, with the shift that is set on it.
        sigma: noise level.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        if float(model_sampling.percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    # Levels that were made from a percent are to give that percent again.
    return round(high, 6)
