"""The training loop that the small perception models share: warm-up, constant rate, decay; average; resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import ExponentialMovingAverage, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        folder: of the checkpoint and the log.
        steps: at which training ends. Resuming with another number moves only the decay.
        learning_rate: between warm-up and decay.
        warm_up: steps of linear rise.
        decay: share of ``steps`` at the end over which the rate falls to nothing, 0..1.
        weight_decay: of AdamW.
        average: decay of the running mean of the weights, 0..1.
        report_every: steps between checkpoints and evaluations.
    """

    folder: Path
    steps: int
    learning_rate: float
    warm_up: int = 200
    decay: float = 0.4
    weight_decay: float = 0.01
    average: float = 0.998
    report_every: int = 250

    @property
    def decay_start(self) -> int:
        """Step at which the rate begins to fall."""
        return self.steps - round(self.decay * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warm_up)
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * rise * max(fall, 0.0)


def train(
    model: nn.Module,
    loss_at_step: Callable[[int], Tensor],
    evaluate: Callable[[], Mapping[str, float]],
    settings: LoopSettings,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
) -> None:
    """Train ``model`` in place and leave the averaged weights in it.

    Args:
        model: already on its device.
        loss_at_step: the loss of one batch. All randomness in it must come from the step number, so that a resumed run
            sees what an unbroken one would.
        evaluate: figures for the log, called with the averaged weights in ``model``.
        settings: length, rates and folder. A checkpoint found in the folder is resumed.
        optimizers: that share the parameters between them; one AdamW where none are given. The loop sets their rates.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = optimizers or [
        torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    ]
    average = ExponentialMovingAverage(model, settings.average)
    path = settings.folder / "checkpoint.pt"
    state = load_checkpoint(path, next(model.parameters()).device, ("model", "optimizer", "average", "step"))
    step = 0
    if state is not None:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, _as_list(state["optimizer"]), strict=True):
            optimizer.load_state_dict(saved)
        average.load_state_dict(state["average"])
        step = int(state["step"])
        logger.info("resumed at step %d", step)
    started = time.monotonic()
    running = 0.0
    while step < settings.steps:
        loss = loss_at_step(step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            optimizer.step()
        average.update(model)
        running = loss.item() if running == 0.0 else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % settings.report_every == 0 or step == settings.steps:
            figures = _evaluate_average(model, average, evaluate)
            text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            logger.info("step %d loss %.3f, %s, %.0f s", step, running, text, time.monotonic() - started)
            save_checkpoint(
                path,
                {
                    "model": model.state_dict(),
                    "optimizer": [optimizer.state_dict() for optimizer in optimizers],
                    "average": average.state_dict(),
                    "step": step,
                },
            )
    model.load_state_dict(average.mean)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _evaluate_average(
    model: nn.Module, average: ExponentialMovingAverage, evaluate: Callable[[], Mapping[str, float]]
) -> Mapping[str, float]:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.mean)
    model.eval()
    with torch.no_grad():
        figures = evaluate()
    model.train()
    model.load_state_dict(weights)
    return figures
