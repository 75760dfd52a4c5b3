"""The systems end to end, written once over small protocols; nothing here imports ComfyUI."""
