"""Mask-Guided Video: steer where and how a video model attends.

ComfyUI imports this folder as a package under a name of its own choosing, so everything inside imports
relatively. Without ComfyUI no nodes are registered and everything else works.
"""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

if find_spec("comfy_api") is None:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
