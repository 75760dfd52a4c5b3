"""Answers of models that cannot be used, because their weights are broken or overflow in half precision."""

from __future__ import annotations

from torch import Tensor

BROKEN_WEIGHTS = "its weights are broken, or too large for half precision: load it in float32, or copy its file again"


class BrokenAnswerError(RuntimeError):
    """A model answered with numbers that are not finite."""


def check_answer(model: str, *answers: Tensor, way_out: str = BROKEN_WEIGHTS) -> None:
    """Refuse an answer that is not finite; of comparisons with it nothing would be left but "no object".

    Args:
        model: that answered, as a user calls it.
        answers: numbers of any shape.
        way_out: what to do about it.

    Raises:
        BrokenAnswerError: one of them is NaN or infinite.
    """
    if not all(bool(answer.isfinite().all()) for answer in answers):
        raise BrokenAnswerError(f"the {model} answers with NaN or infinite numbers; {way_out}.")
