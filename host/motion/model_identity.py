"""Tell whether a ComfyUI MODEL is the one of an earlier run."""

from __future__ import annotations

import hashlib
from typing import Any


def model_identity(model: Any) -> str:
    """A name that differs for other weights or other LoRAs, and is the same in another session.

    Biases and norms alone are looked at: they are a few thousandths of the weights and differ in every tuned model.

    Args:
        model: ``ModelPatcher``.
    """
    import torch

    digest = hashlib.sha256()
    network = model.model.diffusion_model
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.ndim == 1 and name not in model.patches and f"diffusion_model.{name}" not in model.patches:
            digest.update(weight.detach().to("cpu", torch.float32).numpy().tobytes())
    for key in sorted(model.patches):
        for strength, value, *_ in model.patches[key]:
            digest.update(f"{key} {strength}".encode())
            for part in getattr(value, "weights", ()):
                if isinstance(part, torch.Tensor):
                    digest.update(part.detach().to("cpu", torch.float32).sum().numpy().tobytes())
    return f"{type(model.model).__name__} {digest.hexdigest()[:16]}"
