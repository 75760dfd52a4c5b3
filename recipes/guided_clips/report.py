"""The report of guided clips: how the joins of the rounds look, and how colours drift over them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..films.record import FilmRecord
from ..report import environment, peak_memory_bytes
from ..stages import Stages
from .settings import GuidedClipsSettings


@dataclass(frozen=True)
class RoundColours:
    """Mean colours of one round, RGB in 0..1.

    Attributes:
        objects: under the masks; None where they are empty.
        background: beside them; None where they cover everything.
    """

    objects: tuple[float, ...] | None
    background: tuple[float, ...] | None

    @classmethod
    def of(cls, parts: Iterable[Tensor], masks: Tensor) -> RoundColours:
        """Measure a round.

        Args:
            parts: its frames, some [k, H, W, 3] at a time, in 0..1.
            masks: [N, n, H, W] in 0..1.
        """
        inside = (masks > 0.5).any(dim=0)
        sums, counts = torch.zeros(2, 3, dtype=torch.float64), [0, 0]
        done = 0
        for part in parts:
            chosen = inside[done : done + len(part)]
            for place, pixels in enumerate((part[chosen], part[~chosen])):
                sums[place] += pixels.double().sum(0)
                counts[place] += len(pixels)
            done += len(part)
        means = [tuple((sums[place] / counts[place]).tolist()) if counts[place] else None for place in range(2)]
        return cls(*means)


def build_report(
    settings: GuidedClipsSettings,
    size: tuple[int, int, int],
    record: FilmRecord,
    colours: list[RoundColours],
    stages: Stages,
) -> dict[str, Any]:
    """Settings, measurements, timings and notes as plain JSON values.

    Args:
        size: frames, height and width of a round.
        record: of the whole video.
        colours: of each round.
    """
    return {
        "recipe": "guided_clips",
        "rounds": [_round(number, entry, colours[0]) for number, entry in enumerate(colours)],
        "joins": measured_joins(record.changes, settings.rounds, size[0], settings.overlap == "keep"),
        "film": record.measured(),
        "notes": stages.notes,
        "settings": settings.to_dict(),
        "timings": stages.timings,
        "environment": environment(),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def measured_joins(changes: list[float], rounds: int, frames: int, keeps: bool) -> dict[str, Any] | None:
    """How much the picture changes where a round begins, and everywhere else.

    Args:
        changes: of each frame to the one before, as in ``FilmRecord``.
        rounds, frames: how many rounds of how many frames.
        keeps: whether the frame that two rounds share is shown twice; the change between its two showings is not
            counted as a change elsewhere.

    Returns:
        ``at``: the change from the shared frame to the next, by round; ``elsewhere``: mean, standard deviation and
        largest of all others; ``deviations``: how many standard deviations the mean of the joins lies above the others;
        ``shared``: the change between both showings. None where there are no joins, or nothing else.
    """
    step = frames if keeps else frames - 1
    joins = [number * step for number in range(1, rounds)]
    shared = [join - 1 for join in joins] if keeps else []
    others = [change for place, change in enumerate(changes) if place not in {*joins, *shared}]
    if not joins or len(others) < 2:
        return None
    at = [changes[join] for join in joins]
    mean, spread = statistics.mean(others), statistics.stdev(others)
    return {
        "at": at,
        "mean": statistics.mean(at),
        "elsewhere": {"mean": mean, "deviation": spread, "largest": max(others)},
        "deviations": (statistics.mean(at) - mean) / spread if spread else None,
        "shared": [changes[place] for place in shared],
    }


def guided_clips_summary(report: dict[str, Any]) -> str:
    """A few lines on what was made, whether joins are visible and what drifts."""
    settings, film, joins = report["settings"], report["film"], report["joins"]
    lines = [
        *report["notes"],
        f"{len(report['rounds'])} rounds, {film['frames']} frames, {film['width']} x {film['height']}; mode "
        f"{settings['mode']}, strength {settings['strength']:g}, seed {settings['seed']}",
    ]
    if joins is not None:
        lines.append(
            f"change where a round begins {joins['mean']:.4f} (largest {max(joins['at']):.4f}), elsewhere "
            f"{joins['elsewhere']['mean']:.4f} (largest {joins['elsewhere']['largest']:.4f})"
        )
        last = report["rounds"][-1]
        drifts = [f"{name} {last[f'{name}_drift']:.3f}" for name in ("objects", "background") if last[f"{name}_drift"]]
        if drifts:
            lines.append(f"colours of the last round against the first: {', '.join(drifts)}")
    lines.append(f"time: {report['timings']['total']:.1f} s")
    return "\n".join(lines)


def _round(number: int, colours: RoundColours, first: RoundColours) -> dict[str, Any]:
    entry: dict[str, Any] = {"round": number + 1}
    for name in ("objects", "background"):
        mean, start = getattr(colours, name), getattr(first, name)
        entry[name] = None if mean is None else list(mean)
        both = mean is not None and start is not None
        entry[f"{name}_drift"] = (torch.tensor(mean) - torch.tensor(start)).norm().item() if both else None
    return entry
