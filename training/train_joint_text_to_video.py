"""Train the Toybox's joint text-to-video transformer, on latents and text embeddings of the Toybox text-to-video model.

Run it with ``python cli.py train joint_text_to_video``, once ``train text_to_video`` is done: autoencoder and text
encoder are that model's and stay as they are. First single frames (places, shapes, colours), then clips (motion).
It resumes from ``--run``; the latents of the training clips are made once and kept there.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..recipes.given.paths import given_path
from ..toybox import world
from ..video_models.joint.config import JointConfig
from ..video_models.joint.transformer import JointVideoTransformer
from ..video_models.sampling.noise_schedule import add_noise, alphas_cumprod, velocity
from ..video_models.text_encoding import encode_tokens
from ..video_models.word_tokenizer import MAX_TOKENS
from .command_line import begin, training_parser
from .loop import LoopSettings, train
from .train_text_to_video import ClipStore

CONFIG = JointConfig(native_frames=world.NATIVE_FRAMES)
# What says "nothing" for classifier-free guidance: the end token and padding.
EMPTY_TOKENS = (1, *[0] * (MAX_TOKENS - 1))
EMPTY_SHARE = 0.1


def draw_scene(generator: np.random.Generator, split: world.Split) -> world.Scene:
    """A scene of the split; half have two objects, five in six of those of two different shapes."""
    scene = world.random_scene(generator, split, pair_share=0.5)
    alike = len(scene.objects) == 2 and scene.objects[0].shape == scene.objects[1].shape
    # A third of the pairs are alike by chance; half of these are drawn again.
    return draw_scene(generator, split) if alike and generator.random() < 0.6 else scene


def training_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, **_: Any
) -> Tensor:
    """Attention with its probabilities kept, for heads split and no mask: on a CPU the gradient of torch's fused
    attention in bfloat16 takes half of a whole step.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def initialise(network: JointVideoTransformer) -> None:
    """Every block begins as nothing, and so does the prediction: training starts from a stable identity."""
    for tensor in (network.time_modulation.weight, network.time_modulation.bias, network.patch_out.weight):
        nn.init.zeros_(tensor)
    nn.init.zeros_(network.patch_out.bias)


class DenoisingLoss:
    """The training loss: squared error of the velocity, noise levels stratified over the batch."""

    def __init__(
        self, network: JointVideoTransformer, encoder: nn.Module, store: ClipStore, options: argparse.Namespace
    ) -> None:
        self.network = network
        self.encoder = encoder
        self.store = store
        self.options = options
        self.alpha_bar = alphas_cumprod(CONFIG).float()

    def __call__(self, step: int) -> Tensor:
        options = self.options
        # Single frames teach shapes at an eighth of the cost; some go on when the clips have begun.
        images = step < options.image_steps or step % options.image_every == 0
        generator = np.random.default_rng([options.seed, step])
        count = options.image_batch if images else options.batch
        chosen = torch.from_numpy(generator.integers(len(self.store.latents), size=count))
        latents, tokens = self.store.latents[chosen].float(), self.store.tokens[chosen]
        first_frame = 0
        if images:
            # All are the same frame of their clips, so that the network knows where in the motion they are.
            first_frame = int(generator.integers(latents.shape[2]))
            latents = latents[:, :, first_frame : first_frame + 1]
        tokens[torch.from_numpy(generator.random(count) < EMPTY_SHARE)] = torch.tensor(EMPTY_TOKENS)
        return self.loss(latents, tokens, generator, first_frame)

    def loss(self, latents: Tensor, tokens: Tensor, generator: np.random.Generator, first_frame: int = 0) -> Tensor:
        """Loss on given clips; all randomness comes from ``generator``."""
        device = self.options.device
        count = len(latents)
        levels = (np.arange(count) + generator.random(count)) / count
        timesteps = torch.from_numpy(levels * CONFIG.num_train_timesteps).long()
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1, 1)
        target = velocity(latents, noise, alpha_bar).to(device)
        noisy = add_noise(latents, noise, alpha_bar).to(device)
        with torch.no_grad():
            text = encode_tokens(self.encoder, tokens.to(device), pad_token=0)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.options.half):
            predicted = self.network(noisy, timesteps.to(device), text, first_frame=first_frame)
        return nn.functional.mse_loss(predicted.float(), target)


def make_optimizers(network: JointVideoTransformer) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else; the loop sets the rates of both.

    Raises:
        RuntimeError: torch is too old to have Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"torch is {torch.__version__}, which lacks Muon; train with torch 2.9 or newer.")
    matrices, others = [], []
    for name, parameter in network.named_parameters():
        in_block = parameter.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight")
        (matrices if in_block else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=1.5e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def export(state: dict[str, Tensor], out: Path) -> None:
    """Write averaged weights as the Toybox holds them: fp16 safetensors with their config."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in state.items()}
    save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    CONFIG.save(out / "config.json")


def load_text(folder: Path) -> tuple[nn.Module, Any]:
    """The frozen text encoder and the tokenizer of a Toybox text-to-video folder."""
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True).float()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    return encoder.eval().requires_grad_(False), tokenizer


def main(arguments: list[str]) -> None:
    parser = training_parser(
        "joint_text_to_video", __doc__, Path("toybox/joint_text_to_video"), steps=2040, batch=8, learning_rate=1.5e-3
    )
    parser.add_argument("--parts", type=given_path, default=Path("toybox/text_to_video"), help="VAE and text encoder")
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--image-steps", type=int, default=800, help="steps on single frames before the clips")
    parser.add_argument("--image-every", type=int, default=8, help="afterwards, one step in this many is on frames")
    parser.add_argument("--image-batch", type=int, default=48)
    parser.add_argument("--half", action="store_true", help="compute in bfloat16 where the machine is faster in it")
    options = begin(parser, arguments)
    encoder, tokenizer = load_text(options.parts)
    make_store = partial(
        ClipStore, vae_folder=options.parts / "vae", tokenizer=tokenizer, device=options.device, draw=draw_scene
    )
    store = make_store(options.run / "clips.pt", options.clips, "train", options.seed)
    held_out = make_store(options.run / "held_out.pt", 64, "held_out", options.seed + 1)
    network = JointVideoTransformer(CONFIG, attention_function=training_attention).to(options.device)
    initialise(network)
    loss = DenoisingLoss(network, encoder.to(options.device), store, options)

    def evaluate() -> dict[str, float]:
        value = loss.loss(held_out.latents.float(), held_out.tokens, np.random.default_rng(7))
        export(network.state_dict(), options.run / "latest")
        return {"held_out": float(value)}

    settings = LoopSettings(
        options.run, options.steps, options.learning_rate, decay=0.3, average=0.998, report_every=200
    )
    train(network, loss, evaluate, settings, make_optimizers(network))
    export(network.state_dict(), options.out)
