"""The tuning loop: accelerate for precision and accumulation, checkpoints that resume to the same weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...missing_packages import missing_package
from ...weight_files.writing import check_room
from ..checkpoints import load_checkpoint, save_checkpoint
from .architectures import Architecture
from .examples import ExampleMaker, motion_loss
from .settings import MotionSettings

logger = logging.getLogger(__name__)

# Of a checkpoint.
ENTRIES = ("step", "settings", "tuned", "optimizer", "losses")
# May differ between a run and what resumes it: they change nothing that a step does, or only how far it goes.
FREE_SETTINGS = ("checkpoint_every", "validate_every", "checkpointing")


@dataclass(eq=False)
class Run:
    """A tuning run under way.

    Attributes:
        settings: of the run.
        architecture: what is tuned, not yet prepared.
        examples: what is learned from.
        device: where to compute.
        folder: of the checkpoint; None keeps none.
        target: motion file that will be written; there must be room for it. None writes none.
        losses: one per step so far.
    """

    settings: MotionSettings
    architecture: Architecture
    examples: ExampleMaker
    device: torch.device
    folder: Path | None = None
    target: Path | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path | None:
        """Where the state of the run is kept."""
        return None if self.folder is None else self.folder / "checkpoint.pt"


def tune(
    run: Run,
    unet: nn.Module,
    *,
    progress: Callable[[int, int, float], None] | None = None,
    after_step: Callable[[int, nn.Module], None] | None = None,
    stop_at: int | None = None,
) -> nn.Module:
    """Tune a U-Net, from the run's checkpoint on where there is one.

    Args:
        run: settings, data and what is tuned; gains the losses.
        unet: of the LaVie family; it is not changed.
        progress: called with (steps done, steps, loss) after each; may raise to cancel: the last checkpoint stays.
        after_step: called with the steps done and the tuned U-Net, for validation.
        stop_at: end after that many steps as if interrupted, with a checkpoint; None goes to the end.

    Returns:
        The tuned U-Net in evaluation mode; its tensors are in ``run.architecture.state()``.

    Raises:
        ImportError: accelerate or peft is not installed.
        ValueError: the checkpoint is damaged or of other settings, or the loss is not finite.
        OSError: too little room for the motion file.
    """
    settings = run.settings
    tuned = run.architecture.prepare(unet).to(run.device).eval()
    if run.target is not None:
        size = sum(value.numel() * value.element_size() for value in run.architecture.state().values())
        check_room(run.target.parent, size, "the tuned tensors")
    if settings.checkpointing:
        checkpoint_layers(tuned)
    parameters = run.architecture.parameters()
    with _accelerator(settings, run.device) as accelerator:
        optimizer = accelerator.prepare(
            torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        )
        step = _resume(run, optimizer, accelerator)
        last = settings.steps if stop_at is None else min(stop_at, settings.steps)
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            run.losses.append(_step(run, tuned, parameters, optimizer, accelerator, step))
            step += 1
            if step % settings.checkpoint_every == 0 or step == last:
                _save(run, optimizer, accelerator, step)
            if progress is not None:
                progress(step, settings.steps, run.losses[-1])
            if after_step is not None:
                after_step(step, tuned)
    return tuned


def checkpoint_layers(unet: nn.Module) -> None:
    """Make every ResNet and transformer of a U-Net compute its inner values again instead of keeping them."""
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for layer in (*level.resnets, *level.attentions):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _step(
    run: Run, tuned: nn.Module, parameters: list[nn.Parameter], optimizer: Any, accelerator: Any, step: int
) -> float:
    """One step of the optimizer; returns the mean loss of its clips."""
    total = 0.0
    for example in run.examples.examples(step, tuned.config.num_train_timesteps):
        with accelerator.accumulate(tuned):
            with accelerator.autocast():
                loss = motion_loss(tuned, example, tuned.config, run.device)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, run.settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        total += float(loss.detach()) / run.settings.batch
    if not total < float("inf"):
        raise ValueError(
            f"the loss is {total} at step {step + 1}; lower the learning rate ({run.settings.learning_rate:g}) and "
            "start anew in another folder."
        )
    return total


@contextmanager
def _accelerator(settings: MotionSettings, device: torch.device) -> Iterator[Any]:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState
    except ImportError as error:
        raise missing_package("motion tuning", "accelerate") from error

    def forget() -> None:
        # accelerate keeps device and precision for the whole process; a graph may tune twice with different ones.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=settings.precision,
            gradient_accumulation_steps=settings.batch,
        )
    finally:
        forget()


def _settings_text(run: Run) -> str:
    values = {name: value for name, value in asdict(run.settings).items() if name not in FREE_SETTINGS}
    return json.dumps({**values, "kind": run.architecture.kind, **run.architecture.metadata()}, sort_keys=True)


def _save(run: Run, optimizer: Any, accelerator: Any, step: int) -> None:
    if run.checkpoint is None:
        return
    state: dict[str, Any] = {
        "step": step,
        "settings": _settings_text(run),
        "tuned": run.architecture.state(),
        "optimizer": optimizer.state_dict(),
        "losses": list(run.losses),
    }
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    try:
        save_checkpoint(run.checkpoint, state)
    except OSError as error:
        # Hours of work are not thrown away for it: the last good checkpoint is still there, and the next may succeed.
        logger.warning("the checkpoint of step %d could not be written: %s", step, error)


def _resume(run: Run, optimizer: Any, accelerator: Any) -> int:
    """Put the state of the run's checkpoint back; returns the steps it had done."""
    state = None if run.checkpoint is None else load_checkpoint(run.checkpoint, run.device, ENTRIES)
    if state is None:
        return 0
    wanted, found = json.loads(_settings_text(run)), json.loads(state["settings"])
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if changed:
        values = ", ".join(f"{name} {found.get(name)!r} (now {wanted.get(name)!r})" for name in changed)
        raise ValueError(
            f"{str(run.checkpoint)!r} is of a run with other settings: {values}; resume with those, or choose another "
            "folder for the run."
        )
    run.architecture.load(state["tuned"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.losses[:] = state["losses"]
    logger.info("resumed at step %d", state["step"])
    return int(state["step"])
