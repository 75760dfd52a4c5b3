"""Train the Toybox text-to-video model: U-Net and text encoder together, on latents of the Toybox VAE.

Run it with ``python cli.py train text_to_video``, once ``train vae`` is done. First single frames (places, shapes,
colours), then clips (motion). It resumes from ``--run``; the latents of the training clips are made once and kept
there. ``--start-from`` begins with the weights of an earlier model, which may know fewer words.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..recipes.given.paths import given_path
from ..toybox import world
from ..video_models.lavie.config import LaVieConfig
from ..video_models.lavie.unet import LaVieUNet
from ..video_models.sampling.noise_schedule import add_noise, alphas_cumprod, velocity
from ..video_models.text_encoding import encode_tokens
from ..video_models.toybox import load_unet
from ..video_models.word_tokenizer import MAX_TOKENS, make_word_tokenizer
from .command_line import begin, training_parser
from .loop import LoopSettings, train

logger = logging.getLogger(__name__)

DrawScene = Callable[[np.random.Generator, world.Split], world.Scene]

CONFIG = LaVieConfig(
    block_out_channels=(32, 64, 128),
    attention_levels=(True, True, True),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=64,
    norm_num_groups=8,
    prediction_type="v_prediction",
    native_frames=world.NATIVE_FRAMES,
)
TEXT_CONFIG = {
    "d_model": CONFIG.cross_attention_dim,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def vocabulary() -> list[str]:
    """Every word of the world's prompts; words that came later stand last, so that earlier ones keep their ids."""
    sentences = [*world.COLOURS, *world.SHAPES, *world.MOTIONS.values(), *world.BACKGROUNDS.values(), "a and"]
    return [*sorted({word for sentence in sentences for word in sentence.split()}), *world.DETAILS]


def draw_scene(
    generator: np.random.Generator, split: world.Split, detail_share: float = 0.0, redraw_still: float = 0.0
) -> world.Scene:
    """A scene to train on.

    Args:
        generator: the only source of chance.
        split: of the word combinations.
        detail_share: share of the objects that have a texture or are small, 0..1.
        redraw_still: share of the scenes with a still object that are drawn again, 0..1.
    """
    while True:
        scene = world.random_scene(generator, split, detail_share=detail_share)
        still = any(item.motion == "still" for item in scene.objects)
        if not (redraw_still and still and generator.random() < redraw_still):
            return scene


class TextToVideo(nn.Module):
    """The two modules that learn together."""

    def __init__(self, vocabulary_size: int) -> None:
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        self.unet = LaVieUNet(CONFIG)
        self.text_encoder = T5EncoderModel(T5Config(vocab_size=vocabulary_size, **TEXT_CONFIG))
        for name, parameter in self.unet.named_parameters():
            # Every residual branch begins as nothing: training starts from a stable identity.
            if name.endswith(("proj_out.weight", "conv2.weight", "attn_temp.to_out.0.weight", "conv_out.weight")):
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicted velocity for [B, 4, T, h, w] and token ids [B, S]."""
        return self.unet(latents, timesteps, encode_tokens(self.text_encoder, tokens, pad_token=0))


def start_from(model: TextToVideo, folder: Path) -> None:
    """Put the weights of an earlier model into ``model``; words that it did not know begin from small noise.

    Args:
        model: whose vocabulary begins with the earlier model's.
        folder: holds ``unet.safetensors``, ``config.json`` and ``text_encoder``.

    Raises:
        ValueError: the earlier model is of another size, or knows more words.
    """
    from transformers import T5EncoderModel

    earlier = load_unet(folder)
    if earlier.config != CONFIG:
        raise ValueError(
            f"{folder} holds a U-Net of other settings ({earlier.config}) than the one to train ({CONFIG}); give the "
            "folder of a Toybox model."
        )
    model.unet.load_state_dict(earlier.state_dict())
    state = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True).float().state_dict()
    words = len(model.text_encoder.shared.weight)
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name in state:
            state[name] = _grown(state[name], words, folder)
    model.text_encoder.load_state_dict(state)


def _grown(embedding: Tensor, words: int, folder: Path) -> Tensor:
    known = len(embedding)
    if known > words:
        raise ValueError(f"the text encoder of {folder} knows {known} tokens, and this trains {words}; it is newer.")
    # The same rows for both names of the matrix: they are one parameter.
    noise = torch.randn(words - known, embedding.shape[1], generator=torch.Generator().manual_seed(known))
    return torch.cat([embedding, 0.1 * embedding.std() * noise])


class ClipStore:
    """Latents and tokens of the training clips, encoded once and kept in a file.

    Args:
        path: where the file is, or will be.
        count: how many clips to render when it is not there.
        split: which word combinations to draw.
        seed: of the scenes.
        vae_folder: the VAE that encodes.
        tokenizer: of the prompts.
        device: to encode on.
        draw: makes a scene of the split.
        drawn_with: settings of ``draw``, kept in the file.

    Raises:
        ValueError: the file holds clips that were drawn with other settings.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        split: world.Split,
        seed: int,
        vae_folder: Path,
        tokenizer: Any,
        device: Any,
        draw: DrawScene = world.random_scene,
        drawn_with: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self._encode(count, split, seed, vae_folder, tokenizer, device, draw)
            torch.save({**made, "drawn_with": dict(drawn_with)}, path)
        stored = torch.load(path, weights_only=True)
        # Files of before there were settings were drawn with none.
        earlier = {name: value for name, value in stored.get("drawn_with", {}).items() if value}
        wanted = {name: value for name, value in drawn_with.items() if value}
        if earlier != wanted:
            raise ValueError(
                f"the clips in {str(path)!r} were drawn with {earlier or 'no details'}, not with "
                f"{wanted or 'no details'}; remove the file, or give another --run."
            )
        self.latents: Tensor = stored["latents"]
        self.tokens: Tensor = stored["tokens"]

    @staticmethod
    @torch.no_grad()
    def _encode(
        count: int,
        split: world.Split,
        seed: int,
        vae_folder: Path,
        tokenizer: Any,
        device: Any,
        draw: DrawScene,
    ) -> dict[str, Tensor]:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(vae_folder).float().to(device, memory_format=torch.channels_last)
        generator = np.random.default_rng(seed)
        latents, prompts = [], []
        for number in range(count):
            scene = draw(generator, split)
            prompts.append(world.prompt(scene))
            frames = torch.from_numpy(world.render(scene).frames).permute(0, 3, 1, 2).to(device) * 2 - 1
            encoded = vae.encode(frames.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
            encoded = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
            latents.append(encoded.transpose(0, 1).half().cpu().contiguous())
            if number % 1000 == 999:
                logger.info("encoded %d of %d clips", number + 1, count)
        tokens = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        return {"latents": torch.stack(latents), "tokens": tokens["input_ids"]}

    def batch(self, generator: np.random.Generator, count: int, single_frames: bool) -> tuple[Tensor, Tensor]:
        """Random clips [count, 4, T, h, w], or random frames of clips [count, 4, 1, h, w], with their tokens."""
        chosen = torch.from_numpy(generator.integers(len(self.latents), size=count))
        latents = self.latents[chosen].float()
        if single_frames:
            frames = torch.from_numpy(generator.integers(latents.shape[2], size=count))
            latents = latents[torch.arange(count), :, frames][:, :, None]
        return latents, self.tokens[chosen]


class DenoisingLoss:
    """The training loss: squared error of the velocity, noise levels stratified over the batch."""

    def __init__(self, model: TextToVideo, store: ClipStore, options: argparse.Namespace) -> None:
        self.model = model
        self.store = store
        self.options = options
        self.alpha_bar = alphas_cumprod(CONFIG).float()
        self.empty_tokens = torch.tensor([1] + [0] * (MAX_TOKENS - 1))

    def __call__(self, step: int) -> Tensor:
        options = self.options
        # Single frames teach shapes at an eighth of the cost; some go on when the clips have begun.
        images = step < options.image_steps or step % options.image_every == 0
        generator = np.random.default_rng([options.seed, step])
        count = options.image_batch if images else options.batch
        latents, tokens = self.store.batch(generator, count, images)
        tokens[torch.from_numpy(generator.random(count) < 0.1)] = self.empty_tokens
        return self.loss(latents, tokens, generator, options.noise_shift)

    def loss(self, latents: Tensor, tokens: Tensor, generator: np.random.Generator, noise_shift: float = 1.0) -> Tensor:
        """Loss on given clips; all randomness comes from ``generator``.

        With a ``noise_shift`` of s, level u of 0..1 becomes s u / (1 + (s - 1) u): above 1, more of the clips are very
        noisy, and there the motion is decided.
        """
        device = self.options.device
        count = len(latents)
        levels = (np.arange(count) + generator.random(count)) / count
        levels = noise_shift * levels / (1 + (noise_shift - 1) * levels)
        timesteps = torch.from_numpy(levels * CONFIG.num_train_timesteps).long()
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1, 1)
        target = velocity(latents, noise, alpha_bar).to(device)
        noisy = add_noise(latents, noise, alpha_bar).to(device)
        return nn.functional.mse_loss(self.model(noisy, timesteps.to(device), tokens.to(device)), target)


def make_optimizers(model: TextToVideo) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the U-Net, AdamW for everything else; the loop sets the rates of both.

    Raises:
        RuntimeError: torch is too old to have Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"torch is {torch.__version__}, which lacks Muon; train with torch 2.9 or newer.")
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and name.startswith("unet.") and "relative_attention_bias" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def export(state: dict[str, Tensor], tokenizer: Any, out: Path) -> None:
    """Write averaged weights as the Toybox holds them: fp16 safetensors with their configs."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    unet = {name.removeprefix("unet."): value.contiguous() for name, value in half.items() if name.startswith("unet.")}
    save_file(unet, out / "unet.safetensors", metadata={"format": "pt"})
    CONFIG.save(out / "config.json")
    model = TextToVideo(len(tokenizer))
    model.load_state_dict(state)
    model.text_encoder.half().save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")


def _parser() -> argparse.ArgumentParser:
    parser = training_parser(
        "text_to_video", __doc__, Path("toybox/text_to_video"), steps=4500, batch=8, learning_rate=1e-3
    )
    parser.add_argument("--vae", type=given_path, default=Path("toybox/text_to_video/vae"))
    parser.add_argument("--start-from", type=given_path, help="folder of an earlier model to begin with")
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--detail-share", type=float, default=0.0, help="share of objects with a texture, or small")
    parser.add_argument("--redraw-still", type=float, default=0.0, help="share of the still scenes drawn again")
    parser.add_argument("--noise-shift", type=float, default=1.0, help="above 1 for more clips of high noise")
    parser.add_argument("--image-steps", type=int, default=1200, help="steps on single frames before the clips")
    parser.add_argument("--image-every", type=int, default=8, help="afterwards, one step in this many is on frames")
    parser.add_argument("--image-batch", type=int, default=64)
    parser.add_argument("--warm-up", type=int, default=200, help="steps over which the rate rises")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the steps over which it falls at the end")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the running mean of the weights")
    parser.add_argument("--report-every", type=int, default=200, help="steps between checkpoints")
    return parser


def main(arguments: list[str]) -> None:
    options = begin(_parser(), arguments)
    tokenizer = make_word_tokenizer(vocabulary())
    drawn_with = {"detail_share": options.detail_share, "redraw_still": options.redraw_still}
    make_store = partial(ClipStore, vae_folder=options.vae, tokenizer=tokenizer, device=options.device)
    store = make_store(
        options.run / "clips.pt",
        options.clips,
        "train",
        options.seed,
        draw=partial(draw_scene, **drawn_with),
        drawn_with=drawn_with,
    )
    held_out = make_store(options.run / "held_out.pt", 64, "held_out", options.seed + 1)
    model = TextToVideo(len(tokenizer)).to(options.device)
    if options.start_from:
        start_from(model, options.start_from)
    loss = DenoisingLoss(model, store, options)

    def evaluate() -> dict[str, float]:
        generator = np.random.default_rng(7)
        value = loss.loss(held_out.latents.float(), held_out.tokens, generator)
        export(model.state_dict(), tokenizer, options.run / "latest")
        return {"held_out": float(value)}

    settings = LoopSettings(
        options.run,
        options.steps,
        options.learning_rate,
        warm_up=options.warm_up,
        decay=options.decay,
        average=options.average,
        report_every=options.report_every,
    )
    train(model, loss, evaluate, settings, make_optimizers(model))
    export(model.state_dict(), tokenizer, options.out)
