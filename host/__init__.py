"""The pack inside ComfyUI: our models as native ones, sampling, prompts and tuned motion."""
