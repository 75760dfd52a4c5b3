"""Core's optical flow model for nodes that carry masks from frame to frame."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...perception.boxes import shown
from ...perception.optical_flow import FlowEstimator, FlowNetwork, flow_between
from .types import OpticalFlow


def optical_flow_input(use: str) -> io.Input:
    """A flow model in the place of the flow that needs no weights.

    Args:
        use: what it does in this node, as a sentence.
    """
    return OpticalFlow.Input(
        "optical_flow",
        optional=True,
        tooltip=f"{use} From core's Load Optical Flow Model (RAFT). Not connected: OpenCV's DIS, which needs no model.",
    )


def given_flow(optical_flow: Any, height: int, width: int) -> FlowEstimator:
    """What came through the input, on its device; the flow without weights where nothing is connected.

    Args:
        optical_flow: a ``ModelPatcher``, or None.
        height, width: of the video.

    Raises:
        ValueError: it is no model.
    """
    if optical_flow is None:
        return flow_between
    if not isinstance(optical_flow, ModelPatcher):
        raise ValueError(f"optical_flow is {shown(optical_flow)}; connect core's Load Optical Flow Model.")
    management.load_models_gpu([optical_flow], memory_required=FlowNetwork.working_memory(height, width))
    # Its layers are torchvision's own: core cannot leave a part of them behind.
    return FlowNetwork(optical_flow.model.to(optical_flow.load_device).eval())
