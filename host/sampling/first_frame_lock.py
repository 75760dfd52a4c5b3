"""Give a ComfyUI model a clean first frame, for every sampler.

At the start of a run (``OUTER_SAMPLE``) the frame is compared with the video. At each call of the model
(``APPLY_MODEL``) its first frame is replaced before the model scales its input, so that the network is given the clean
latents whatever the noise level; the prediction that the sampler goes on with, and the result, hold them as well. The
host's own noise mask is something else: it gives the network that frame noised.

Source: LAMP (arXiv 2310.10769), first-frame conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...backbones.host_hooks import film_extras
from ...backbones.nested_latents import SHAPES_KEY, Shapes, video_in, with_video_in
from ...backbones.registry import diffusion_model, family_of, latent_channels_of
from ...backbones.window_runs import pictures_beside, prepare_windows
from ...video_models.sampling.first_frame import FirstFrame
from ...video_models.sampling.latent_statistics import SWITCH
from ...video_models.sampling.window_frames import window_frames

LOCK_KEY = "mask_guided_video_first_frame"
# Where a run says at which of the latents' frames the video begins.
FIRST_PLACE_KEY = "mask_guided_video_first_place"
# Devices that always have double precision.
DOUBLE_DEVICES = ("cpu", "cuda")
# Noise levels that differ by less than this part of them are the same.
SAME_LEVEL = 1e-4


def lock_first_frame(model: Any, latents: Tensor, match_statistics: bool = False, switch: float = SWITCH) -> Any:
    """Return a clone of a model that keeps a first frame, which a LATENT holds.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        latents: of the frame, see ``raw_frame``.
        match_statistics, switch: see ``FirstFrame``.

    Raises:
        ValueError: another form than that of one frame of the model, or values that are not finite.
    """
    raw = raw_frame(model, latents)
    seen = model.get_model_object("latent_format").process_in(raw)
    return install_first_frame_lock(model, FirstFrame(seen, match_statistics, switch), raw)


def raw_frame(model: Any, latents: Tensor) -> Tensor:
    """The one frame that a LATENT holds, [1 or B, C, 1, h, w].

    Args:
        model: ComfyUI ``ModelPatcher`` that is to work on it.
        latents: [B, C, 1, h, w] or [1, C, h, w]. The first frames of B videos need five axes, and a model whose videos
            are in the batch has only one video.

    Raises:
        ValueError: several frames, or channels that are not the model's.
    """
    shape = tuple(latents.shape)
    channels = latent_channels_of(model)
    if latents.ndim not in (4, 5) or latents.shape[1] != channels:
        raise ValueError(
            f"the first frame has shape {shape} but this model's latents have {channels} channels; encode the picture "
            "with the model's own VAE."
        )
    frames = latents.shape[2] if latents.ndim == 5 else latents.shape[0]
    if frames != 1:
        raise ValueError(f"the first frame has shape {shape}, that is {frames} frames; give one frame alone.")
    return latents if latents.ndim == 5 else latents[:, :, None]


def install_first_frame_lock(model: Any, first_frame: FirstFrame, raw: Tensor | None = None) -> Any:
    """Return a clone of a model that keeps a clean first frame, in place of one that was set before.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed. With latents of four axes the batch is the video.
        first_frame: scaled as the network sees it. With ``match_statistics`` the predictions that samplers go on with
            are matched, which is near to what LAMP does to the latents between the steps.
        raw: the same frame as a LATENT holds it, which the result begins with bit for bit; made when left out.
    """
    from comfy.patcher_extension import WrappersMP

    locked = model.clone()
    kept = model.get_model_object("latent_format").process_out(first_frame.latents) if raw is None else raw

    def run(
        executor: Any, noise: Tensor, latents: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        guider = executor.class_obj
        shapes = kwargs.get(SHAPES_KEY)
        first_frame.check_film(as_film(video_in(noise, shapes)).shape)
        place = _place(guider)
        prepare_windows(guider.model_options, noise)
        _lay(guider.model_options, first_frame, place, shapes)
        # An empty latent stays as it is: the host takes one of zeros for none at all.
        if latents is not None and bool(latents.any()):
            latents = with_video_in(latents, _placed(video_in(latents, shapes), kept, place), shapes)
        # With noise left over, the result is not a video yet. (Some samplers write into the levels.)
        finished = float(sigmas[-1]) == 0.0
        result = executor(noise, latents, sampler, sigmas, *args, **kwargs)
        return with_video_in(result, _placed(video_in(result, shapes), kept, place), shapes) if finished else result

    locked.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, LOCK_KEY)
    locked.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, LOCK_KEY, run)
    return locked


def as_film(latents: Tensor) -> Tensor:
    """View of latents as [B, C, T, h, w]; [T, C, h, w] is one video."""
    return latents if latents.ndim == 5 else latents.transpose(0, 1)[None]


def like_latents(film: Tensor, latents: Tensor) -> Tensor:
    """A video [B, C, T, h, w] in the form of the latents that it was made of."""
    return film if latents.ndim == 5 else film[0].transpose(0, 1)


def _place(guider: Any) -> int:
    """At which of the latents' frames the video begins: after reference pictures."""
    network = diffusion_model(guider.model_patcher)
    family = family_of(network)
    if family is None:
        return 0
    return family.leading_frames(network, film_extras(guider.conds))


def _lay(model_options: dict[str, Any], first_frame: FirstFrame, place: int, shapes: Shapes | None) -> None:
    """Write into the options of one run what its calls of the model and its predictions go through.

    Args:
        model_options: of the run; changed in place.
        first_frame: that is to be kept.
        place: of it among the latents' frames.
        shapes: of the streams of the run's latents, where these are in one pack.
    """
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    def call_model(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        own = kwargs.get(SHAPES_KEY)
        video = video_in(x, own)
        frames = video.shape[2] if video.ndim == 5 else video.shape[0] // _chunks(options)
        names = window_frames(options, frames, pictures_beside(frames, c_concat, kwargs))
        places = [here for here, name in enumerate(names) if name == place]
        sampling = executor.class_obj.model_sampling
        given = with_video_in(x, _clean_input(sampling, video, t, options, first_frame.latents, places), own)
        return executor(given, t, c_concat, c_crossattn, control, options, **kwargs).to(x.dtype)

    def prediction(args: Mapping[str, Any]) -> Tensor:
        denoised = args["denoised"]
        film = as_film(video_in(denoised, shapes))
        video = film[:, :, place:]
        if first_frame.match_statistics:
            sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
            video = first_frame.matched(video, *_step(sigmas, args["sigma"]))
        kept = torch.cat([film[:, :, :place], first_frame.placed(video)], dim=2)
        return with_video_in(denoised, like_latents(kept, video_in(denoised, shapes)), shapes)

    options = model_options.setdefault("transformer_options", {})
    options[FIRST_PLACE_KEY] = place
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, LOCK_KEY, call_model, options)
    after: list[Callable[[Any], Tensor]] = model_options.get("sampler_post_cfg_function", [])
    model_options["sampler_post_cfg_function"] = [*after, prediction]


def _clean_input(
    sampling: Any, x: Tensor, sigma: Tensor, options: Mapping[str, Any], clean: Tensor, places: Sequence[int]
) -> Tensor:
    """Latents of a call of the model, with the clean first frame at the places where the call holds it.

    The host will scale them by a factor of the noise level, so the frame is divided by that factor. In double precision
    what comes out rounds to the very bits that are wanted, and the other frames to what they were without it.
    """
    if not places:
        return x
    films = x if x.ndim == 5 else x.unflatten(0, (_chunks(options), -1)).transpose(1, 2)
    if films.shape[-2:] != clean.shape[-2:]:
        raise ValueError(
            f"a condition is for a part of the picture ({films.shape[-1]} x {films.shape[-2]} of {clean.shape[-1]} x "
            f"{clean.shape[-2]} cells), which the first frame cannot be cut to; give the condition a mask instead of "
            "an area."
        )
    films = films.to(torch.float64) if x.device.type in DOUBLE_DEVICES else films.clone()
    unit = films.new_ones(x.shape[0], *[1] * (x.ndim - 1))
    # All rows of a chunk are at one noise level.
    factor = sampling.calculate_input(sigma, unit).flatten()[:: x.shape[0] // films.shape[0]]
    rows = clean.to(films).repeat(films.shape[0] // clean.shape[0], 1, 1, 1, 1)
    for place in places:
        films[:, :, place] = rows[:, :, 0] / factor[:, None, None, None]
    return films if x.ndim == 5 else films.transpose(1, 2).flatten(0, 1)


def _chunks(options: Mapping[str, Any]) -> int:
    """Conditional and unconditional parts of the batch of a call."""
    return len(options.get("cond_or_uncond") or (0,))


def _placed(latents: Tensor, frame: Tensor, place: int) -> Tensor:
    """A copy of raw latents with a raw frame [1 or B, C, 1, h, w] at a place."""
    film = as_film(latents).clone()
    film[:, :, place : place + 1] = frame.to(film)
    return like_latents(film, latents)


def _step(sigmas: Tensor, sigma: Tensor) -> tuple[int, int]:
    """Which step a noise level belongs to, and how many there are; samplers may call the model between steps too."""
    above = int((sigmas[:-1] >= float(sigma.max()) * (1.0 - SAME_LEVEL)).sum())
    return max(above - 1, 0), len(sigmas) - 1
