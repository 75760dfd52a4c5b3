"""One file for each family of video models in ComfyUI: where its attention calls stand."""
