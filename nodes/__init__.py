"""ComfyUI nodes, one module per topic: validate, call, return. Nothing here is imported without ComfyUI."""
