"""Objects followed through a video by models with a memory: SAM 2 (Ravi et al., arXiv 2408.00714), SAM 3, EdgeTAM.

The models are those of transformers, driven through their inference sessions. A session as the library makes it keeps
the whole video and everything that was ever found in it; here frames are prepared when they are looked at, and what no
later frame can look back to is freed, so that memory does not grow with the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..answers import check_answer
from ..frames import Film
from ..prompts import ObjectPrompt
from ..propagation import Sighting

# Frames with prompts that an object remembers when its model names no limit: the first one and the latest others.
MAX_PROMPTED_FRAMES = 8
# Labels of the two corners of a box among the points of a prompt.
BOX_CORNERS = (2, 3)
# Largest logit of an earlier mask that is handed back to the model to be corrected, as in the original predictor.
MAX_FEEDBACK_LOGIT = 32.0
# Logits for the outside and the inside of a mask that a user gives.
MASK_LOGITS = (-10.0, 10.0)


class MemoryModel:
    """A model with a memory, ready to follow objects.

    Args:
        model: the torch module whose parameters are moved about; all of ``tracker`` is in it.
        tracker: a transformers video model (``Sam2VideoModel``, ``Sam3TrackerVideoModel``, ``EdgeTamVideoModel``).
        session_class: the inference session that belongs to it.
        processor: the transformers video processor that prepares frames.
    """

    corrected_by_boxes = False

    def __init__(self, model: nn.Module, tracker: nn.Module, session_class: type, processor: Any) -> None:
        self.model = model
        self.tracker = tracker
        self.session_class = session_class
        self.processor = processor
        # Positions of prompts are fractions of the picture: in half precision they would be pixels off.
        positions = tracker.prompt_encoder.shared_embedding
        positions.positional_embedding = positions.positional_embedding.float()

    @property
    def device(self) -> torch.device:
        """Where the parameters are now."""
        return self.tracker.no_memory_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.tracker.no_memory_embedding.dtype

    @property
    def side(self) -> int:
        """Height and width in pixels of the square that frames are stretched to."""
        return self.tracker.prompt_encoder.input_image_size

    def follow(self, film: Film, reverse: bool = False) -> MemoryPropagator:
        """Start following in a video, forwards or backwards in time."""
        return MemoryPropagator(self, film, reverse)

    def prepare(self, film: Film, frame: int) -> Tensor:
        """A frame as the model wants it: float [3, S, S] in the model's type and place."""
        picture = torch.from_numpy(film.picture(frame)).permute(2, 0, 1)[None].to(self.device)
        pixels = self.processor(videos=[picture], return_tensors="pt")["pixel_values_videos"]
        return pixels[0][0].to(self.device, self.dtype)

    def encode(self, film: Film, frame: int) -> dict[str, Any] | None:
        """Features of a frame where something else than the tracker finds them; None lets the tracker do it."""
        return None


class MemoryPropagator:
    """Follows objects through one video in one direction; see :class:`perception.propagation.Propagator`.

    Every object has its own session, so that objects do not influence each other and can be dropped; the
    features of a frame are found once for all of them. For the sessions time always runs forwards.

    Args:
        model: that looks at the frames.
        film: to follow in.
        reverse: backwards in time.
    """

    def __init__(self, model: MemoryModel, film: Film, reverse: bool = False) -> None:
        self.model = model
        self.frames = _PreparedFrames(model, film, reverse)
        self.sessions: dict[int, Any] = {}
        self._features: Any = None

    def step(self, frame: int) -> dict[int, Sighting]:
        """Every followed object in this frame, by identity, from what was seen in the frames visited before.

        Raises:
            ValueError: when the frame holds values that are not finite.
        """
        place = self.frames.place(frame)
        return {identity: self._look(session, place) for identity, session in self.sessions.items()}

    def prompt(self, frame: int, prompts: dict[int, ObjectPrompt]) -> dict[int, Sighting]:
        """Set where objects are in this frame, by identity; new ones are followed from now on.

        A box or a mask says afresh where the object is. Points alone correct what was found in this frame before, if
        anything was. A mask alone is taken as it is; with a box or points it is a rough guess.

        Raises:
            ValueError: when the frame holds values that are not finite.
        """
        place = self.frames.place(frame)
        found = {}
        for identity, prompt in prompts.items():
            session = self.sessions.get(identity)
            if session is None:
                session = self.sessions[identity] = self._open_session()
            found[identity] = self._tell(session, place, prompt)
        return found

    def forget(self, identity: int) -> None:
        """Stop following an object and free its memory."""
        self.sessions.pop(identity, None)

    def _open_session(self) -> Any:
        film = self.frames.film
        session = self.model.session_class(
            video_height=film.height,
            video_width=film.width,
            inference_device=self.model.device,
            inference_state_device=self.model.device,
            dtype=self.model.dtype,
        )
        session.processed_frames = self.frames
        if self._features is None:
            self._features = session.cache
        session.cache = self._features
        session.obj_id_to_idx(0)
        return session

    def _tell(self, session: Any, place: int, prompt: ObjectPrompt) -> Sighting:
        believed = prompt.mask is not None and prompt.box is None and not prompt.points
        guess = None
        if prompt.mask is not None:
            logits = _stretch(prompt.mask, self.model.side) * (MASK_LOGITS[1] - MASK_LOGITS[0]) + MASK_LOGITS[0]
            guess = None if believed else logits
        elif prompt.box is None:
            guess = _earlier_mask(session, place)
            if place in session.frames_tracked_per_obj[0]:
                # The library would keep the memory of this answer with the earlier one.
                _prompted(session).pop(place, None)
        if prompt.mask is not None or guess is None:
            # As if this were the first frame: the prompt beats what is remembered.
            session.frames_tracked_per_obj[0].pop(place, None)
            _found_by_itself(session).pop(place, None)
        if believed:
            session.add_mask_inputs(0, place, _stretch(prompt.mask, self.model.side))
        else:
            session.add_point_inputs(0, place, self._points(prompt))
        session.obj_with_new_inputs = [0]
        sighting = self._look(session, place, guess)
        if place in _found_by_itself(session):
            # A corrected frame is remembered for as long as one with a first prompt.
            _prompted(session)[place] = _found_by_itself(session).pop(place)
        _limit_prompted(session, self._most_prompted())
        # The model sees a mask at a quarter of its picture's size; nothing of what was given is lost this way.
        return Sighting(prompt.mask.to(torch.uint8) * 255, 1.0) if believed else sighting

    def _points(self, prompt: ObjectPrompt) -> dict[str, Tensor]:
        """Box and points as coordinates float [1, 1, P, 2] in model pixels and labels int32 [1, 1, P]."""
        places, labels = [], []
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.corners
            places += [(x0, y0), (x1, y1)]
            labels += BOX_CORNERS
        for point in prompt.points:
            places.append((point.x, point.y))
            labels.append(int(point.inside))
        film, side = self.frames.film, self.model.side
        scale = torch.tensor([side / film.width, side / film.height])
        return {
            "point_coords": (torch.tensor(places, dtype=torch.float32) * scale)[None, None],
            "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
        }

    def _look(self, session: Any, place: int, guess: Tensor | None = None) -> Sighting:
        """Run the model on one object in one frame, with the prompts that the session holds for it."""
        model, film = self.model, self.frames.film
        for part in (session, session.cache):
            part.inference_device = part.inference_state_device = model.device
        session.dtype = model.dtype
        if session.cache.get_vision_features(place) is None:
            features = model.encode(film, self.frames.frame(place))
            if features is not None:
                session.cache.cache_vision_features(place, features)
        with _watched(model.tracker, guess) as likeness:
            model.tracker(session, frame_idx=place)
        # Where both are there, a prompt has just been corrected.
        output = _found_by_itself(session).get(place) or _prompted(session)[place]
        sighting = _sighting(output, max(likeness, default=1.0), film.height, film.width)
        _let_go(session, place, model.tracker.config)
        return sighting

    def _most_prompted(self) -> int:
        named = getattr(self.model.tracker.config, "max_cond_frame_num", -1)
        return named if named > 0 else MAX_PROMPTED_FRAMES


class _PreparedFrames:
    """A video as a session sees it: a mapping from place in time to pixels that are made when they are needed."""

    def __init__(self, model: MemoryModel, film: Film, reverse: bool) -> None:
        self.model, self.film, self.reverse = model, film, reverse

    def __len__(self) -> int:
        return len(self.film)

    def __getitem__(self, place: int) -> Tensor:
        return self.model.prepare(self.film, self.frame(place))

    def place(self, frame: int) -> int:
        """Where a frame is in the order of visits."""
        return len(self.film) - 1 - frame if self.reverse else frame

    def frame(self, place: int) -> int:
        """Which frame of the video is visited at a place."""
        return self.place(place)


def _prompted(session: Any) -> dict[int, dict[str, Any]]:
    """What is remembered of frames with prompts, by place."""
    return session.output_dict_per_obj[0]["cond_frame_outputs"]


def _found_by_itself(session: Any) -> dict[int, dict[str, Any]]:
    """What is remembered of frames in which the model found the object without help, by place."""
    return session.output_dict_per_obj[0]["non_cond_frame_outputs"]


def _earlier_mask(session: Any, place: int) -> Tensor | None:
    """The mask that was found in this frame before: logits [1, 1, h, w]; None when it is missing or empty."""
    output = _found_by_itself(session).get(place) or _prompted(session).get(place)
    if output is None or not (output["pred_masks"] > 0).any():
        return None
    return output["pred_masks"].float().clamp(-MAX_FEEDBACK_LOGIT, MAX_FEEDBACK_LOGIT)


def _stretch(mask: Tensor, side: int) -> Tensor:
    """A mask bool [H, W] as hard float [1, 1, S, S], never empty if something was in it."""
    values = mask.float()[None, None]
    if tuple(mask.shape) != (side, side):
        values = functional.interpolate(values, (side, side), mode="bilinear", antialias=True, align_corners=False)
    # Things thinner than a pixel of the model would vanish when cut at one half.
    return (values >= min(0.5, float(values.max()))).float()


@contextmanager
def _watched(tracker: nn.Module, guess: Tensor | None) -> Iterator[list[float]]:
    """While the model runs: note its estimate of the mask's IoU, which it does not return, and add a rough mask.

    Args:
        tracker: the video model.
        guess: mask logits [1, 1, h, w] for the prompt encoder, which sessions cannot hold beside points.

    Yields:
        A list that the estimate is put in; it stays empty where the model only repeats what it answered before.
    """
    likeness: list[float] = []

    def note(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        check_answer("segmenter", outputs[1])
        likeness.append(float(outputs[1].float().max().clamp(0, 1)))

    def add(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        size = module.mask_input_size
        logits = functional.interpolate(guess, size, mode="bilinear", antialias=True, align_corners=False)
        weight = module.mask_embed.conv1.weight
        return inputs, {**options, "input_masks": logits.to(weight.device, weight.dtype)}

    with ExitStack() as hooks:
        hooks.callback(tracker.mask_decoder.register_forward_hook(note).remove)
        if guess is not None:
            hooks.callback(tracker.prompt_encoder.register_forward_pre_hook(add, with_kwargs=True).remove)
        yield likeness


def _sighting(output: dict[str, Any], likeness: float, height: int, width: int) -> Sighting:
    """A stored answer of the model as a mask at frame size and a score.

    Raises:
        BrokenAnswerError: when it holds NaN.
    """
    check_answer("segmenter", output["object_score_logits"], output["pred_masks"])
    presence = float(output["object_score_logits"].float().flatten()[0])
    empty = Sighting(torch.zeros(height, width, dtype=torch.uint8), 0.0)
    if not presence > 0:
        return empty
    logits = output["pred_masks"].float()
    logits = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0, 0]
    if not (logits > 0).any():
        return empty
    mask = (logits.sigmoid() * 255).round().to(torch.uint8).cpu()
    return Sighting(mask, likeness / (1 + torch.tensor(-presence).exp().item()))


def _let_go(session: Any, place: int, config: Any) -> None:
    """Drop what frames after this one cannot look back to."""
    session.point_inputs_per_obj[0].clear()
    session.mask_inputs_per_obj[0].clear()
    # Whether this frame was tracked is read once more when a prompt for it comes; for other frames it never is.
    tracked = session.frames_tracked_per_obj[0]
    for other in [other for other in tracked if other != place]:
        del tracked[other]
    found = _found_by_itself(session)
    for other in list(found):
        if place - other >= config.max_object_pointers_in_encoder - 1:
            del found[other]
            continue
        if other != place:
            found[other].pop("pred_masks", None)
        if place - other >= config.num_maskmem - 1:
            found[other].pop("maskmem_features", None)
            found[other].pop("maskmem_pos_enc", None)
    for output in (*found.values(), *_prompted(session).values()):
        output.pop("high_res_masks", None)
        if "maskmem_features" in output:
            # The library keeps these in bfloat16, and in some versions cannot mix that with float16.
            if session.dtype == torch.float16:
                output["maskmem_features"] = output["maskmem_features"].to(torch.float16)


def _limit_prompted(session: Any, limit: int) -> None:
    """Keep the first frame with a prompt, which says best what is meant, and the latest others."""
    prompted = _prompted(session)
    first = min(1, limit - 1)
    for other in sorted(prompted)[first : first + max(0, len(prompted) - limit)]:
        del prompted[other]
