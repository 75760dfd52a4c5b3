"""The facts of a run in several threads: the host runs the chunks of a step on several devices at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mask_guided_video.backbones.host_hooks import RunFacts


class Meeting:
    """Where a thread waits for the other one, in vain if that one is kept out."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def __call__(self) -> None:
        try:
            self._barrier.wait(timeout=0.2)
        except threading.BrokenBarrierError:
            self._barrier.reset()


def in_two_threads(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_no_call_is_lost() -> None:
    meeting = Meeting()

    class Counter(int):
        """A number that two threads read before either writes."""

        def __add__(self, other: int) -> Counter:
            meeting()
            return Counter(int(self) + other)

    facts = RunFacts((), {}, model_calls=Counter(5))
    in_two_threads(facts.count_model_call)
    assert facts.model_calls == 7


def test_what_cannot_be_guided_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    meeting = Meeting()

    class Notes(set):
        def __contains__(self, message: Any) -> bool:
            found = super().__contains__(message)
            meeting()
            return found

    facts = RunFacts((), {}, notes=Notes())
    with caplog.at_level(logging.WARNING):
        in_two_threads(lambda: facts.note("the pose branch is not guided"))
    assert caplog.text.count("the pose branch is not guided") == 1
