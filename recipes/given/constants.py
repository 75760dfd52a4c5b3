"""Constants of a mode as a user writes them."""

from __future__ import annotations

import math
import re
from typing import Any

from ...attention_patches.errors import GuideError
from ...attention_patches.guidance.attention_share import ShareGoal
from ...attention_patches.guidance.modes.registry import check_constants, mode_constants


def share_goal(share: float | None, among: str | None) -> ShareGoal | None:
    """The share of attention that a user asks for in place of a strength, or None.

    Args:
        share: see ``ShareGoal``.
        among: as well; None is its own choice.

    Raises:
        GuideError: a value out of its range, or what a share is a part of without a share.
    """
    if share is None:
        if among is not None:
            raise GuideError(f"share_among is {among!r} but there is no share; give a share too.")
        return None
    return ShareGoal(share) if among is None else ShareGoal(share, among)  # type: ignore[arg-type]


def read_constants(name: str, text: str) -> dict[str, Any]:
    """Read constants of a mode from a text.

    Args:
        name: of the mode.
        text: ``constant=value`` pairs, apart by commas, semicolons or new lines; a value may have commas itself
            (``blocks=mid,up``). A line that begins with ``#`` is a remark.

    Returns:
        Values by name, of the kinds of the published ones.

    Raises:
        GuideError: an unknown mode or constant, one that is named twice, or a value of another kind.
    """
    defaults = mode_constants(name)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, str] = {}
    last = ""
    for piece in (part.strip() for part in re.split(r"[,;\n]", "\n".join(lines))):
        if not piece:
            continue
        constant, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            if not last:
                raise GuideError(f"constants has {piece!r} without '='; write pairs such as 'end_percent=0.5'.")
            found[last] += f",{piece}"
            continue
        check_constants(name, (constant,))
        if constant in found:
            raise GuideError(f"constants has {constant!r} twice; give each once.")
        found[constant], last = value, constant
    return {constant: _value(constant, value, defaults[constant]) for constant, value in found.items()}


def _value(constant: str, text: str, default: Any) -> Any:
    """A value of the kind that the published one has."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise GuideError(f"constant {constant} is {text!r}; write true or false.")
        return text.lower() == "true"
    if not isinstance(default, int | float):
        return text
    kind = "whole number" if isinstance(default, int) else "number"
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise GuideError(f"constant {constant} is {text!r}; write a {kind} such as {default}.") from None
    if not math.isfinite(value):
        raise GuideError(f"constant {constant} is {text!r}; write a {kind} such as {default}.")
    return value
