"""The stages of a recipe: their times, progress and notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .protocols import Progress, Releasable

# (stage, done, total); may raise to cancel.
StageProgress = Callable[[str, int, int], None]


@dataclass
class Stages:
    """The clock and the notes of one run.

    Attributes:
        progress: called after every piece of work.
        timings: seconds by stage.
        notes: what a reader of the report has to know, in sentences.
    """

    progress: StageProgress | None = None
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage; yields the stage's own progress function."""

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, done, total)

        started = time.perf_counter()
        yield report
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started


def release(*models: object) -> None:
    """Free the device for the next stage."""
    for model in models:
        if isinstance(model, Releasable):
            model.release()
