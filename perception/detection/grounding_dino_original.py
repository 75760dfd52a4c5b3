"""GroundingDINO files in the original format, by the package groundingdino-py (IDEA-Research/GroundingDINO).

The package runs with any transformers: its wrapper around BERT, which uses methods that transformers 5 no longer has,
is replaced by :class:`TextEncoder` while a model is built. Its deformable attention is plain torch. Weights stay
float32: the package computes places in the picture in float32 and does not mix.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...missing_packages import install_command
from ...weight_files.reading import load_checked
from .grounding import OTHER_TOKENS, STOP, CaptionReader, Grounding, Pictures, grounding_of

if TYPE_CHECKING:
    from transformers import BertConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
SHORT_SIDE = 800
LONG_SIDE = 1333
TOKEN_LIMIT = 256
# Channels of the first Swin stage and its window, as the shapes in a file give them, and the name of that size.
SWIN_NAMES = {
    (96, 7): "swin_T_224_1k",
    (128, 7): "swin_B_224_22k",
    (128, 12): "swin_B_384_22k",
    (192, 7): "swin_L_224_22k",
    (192, 12): "swin_L_384_22k",
}
# Used in training only, and a buffer that older versions of transformers saved.
UNUSED_TENSORS = ("label_enc.", "bert.embeddings.position_ids")
# Every published BERT has heads this wide; shapes do not show it.
BERT_HEAD = 64
BERT_NAME = "bert-base-uncased"
BERT_PAGE = "https://huggingface.co/google-bert/bert-base-uncased"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")

# Tensors whose shapes give the size of the model.
_PATCHES = "backbone.0.patch_embed.proj.weight"
_BIASES = "backbone.0.layers.0.blocks.0.attn.relative_position_bias_table"
_QUERIES = "transformer.tgt_embed.weight"
_WIDENING = "transformer.encoder.layers.0.linear1.weight"
_WORDS = "bert.embeddings.word_embeddings.weight"
_POSITIONS = "bert.embeddings.position_embeddings.weight"
_TEXT_WIDENING = "bert.encoder.layer.0.intermediate.dense.weight"


class OriginalGroundingDino:
    """A :class:`~.grounding.GroundingModel`.

    Args:
        model: the package's ``GroundingDINO``, with its tokenizer.
    """

    token_limit = TOKEN_LIMIT

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.picture_encoder: nn.Module = model.backbone
        self.reader = CaptionReader(model.tokenizer)

    def count_tokens(self, phrase: str) -> int:
        """Tokens that a phrase and its full stop take in a caption."""
        return self.reader.count_tokens(phrase)

    def prepare(self, frames: Tensor) -> Pictures:
        """Resize frames, float [B, H, W, 3], to a short side of 800 and a long one of at most 1333, and normalise."""
        height, width = frames.shape[1:3]
        pixels = frames.movedim(-1, 1)
        size = resized(height, width)
        if size != (height, width):
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        return Pictures((pixels - mean) / std, height, width)

    @torch.no_grad()
    def ground(self, pictures: Pictures, phrases: Sequence[str]) -> Grounding:
        """Look for all phrases at once; see :class:`~.grounding.GroundingModel`.

        All pictures of a pass get the same caption: with different ones the package mixes up their text masks.
        """
        parameter = next(self.model.parameters())
        _, places = self.reader.read(phrases)
        caption = self.reader.caption(phrases)
        with warnings.catch_warnings():
            # Of torch about the package, and the same again for every layer.
            warnings.filterwarnings("ignore", message="torch.meshgrid")
            warnings.filterwarnings("ignore", message=".*torch.cuda.amp.autocast")
            answer = self.model(
                pictures.pixels.to(parameter.device, parameter.dtype), captions=[caption] * len(pictures.pixels)
            )
        return grounding_of(answer["pred_logits"], answer["pred_boxes"], places, pictures)


class TextEncoder(nn.Module):
    """BERT as the package calls it, with the children, and so the tensor names, of the package's own wrapper.

    Args:
        bert_model: transformers ``BertModel``.
    """

    def __init__(self, bert_model: nn.Module) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings = bert_model.embeddings
        self.encoder = bert_model.encoder
        self.pooler = bert_model.pooler

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> dict[str, Tensor]:
        """Encode a caption whose phrases do not see each other.

        Args:
            input_ids: long [B, tokens].
            attention_mask: [B, tokens, tokens], true where a token sees another.
            token_type_ids: long [B, tokens].
            position_ids: long [B, tokens], counted in each phrase anew.

        Returns:
            ``last_hidden_state`` [B, tokens, width].
        """
        hidden = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        hindrance = (1.0 - attention_mask[:, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        return {"last_hidden_state": self.encoder(hidden, attention_mask=hindrance)[0]}


def claims(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict, without ``module.`` before its names, is a GroundingDINO in the original format."""
    names = (_PATCHES, _BIASES, _QUERIES, _WIDENING, _WORDS, _POSITIONS, _TEXT_WIDENING)
    return all(name in state for name in names)


def load_state(
    state: Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    bert_folder: str | Path | None = None,
) -> OriginalGroundingDino:
    """Build the model that a state dict is of and fill it.

    Args:
        state: with names without ``module.``; see :func:`~.reading.read_state`.
        path: that it was read from; BERT's vocabulary is looked for near it.
        dtype: accepted for likeness with other models; weights are float32 whatever it is.
        bert_folder: with ``tokenizer.json`` or ``vocab.txt`` of BERT; None looks beside the file.

    Raises:
        FileNotFoundError: when the vocabulary is missing; the message says where to put which file.
        RuntimeError: when tensors are missing, unknown or of another size, or the vocabulary is another model's.
        ValueError: when the model in the file has an unknown size.
        ImportError: when groundingdino-py or a package that it needs is missing.
    """
    config = config_of(state, path)
    folder = find_bert(path) if bert_folder is None else Path(bert_folder)
    tokenizer = load_tokenizer(folder)
    rows = len(state[_WORDS])
    if len(tokenizer) > rows:
        raise RuntimeError(
            f"the vocabulary in {folder} has {len(tokenizer)} words and {path} knows {rows}; put the files of "
            f"{BERT_PAGE} there."
        )
    from transformers import BertModel

    with _EmptyOnMeta(), package_with(tokenizer, BertModel(bert_config_of(state))) as package:
        model = package.build_groundingdino(config)
    load_checked(model, state, path, UNUSED_TENSORS)
    return OriginalGroundingDino(model)


def config_of(state: Mapping[str, Tensor], path: str | Path = "the file") -> SimpleNamespace:
    """The package's settings for a state dict: sizes from its shapes, all else as every published model has it.

    Raises:
        ValueError: for an unknown size of the picture encoder.
    """
    window = (round(state[_BIASES].shape[0] ** 0.5) + 1) // 2
    size = (state[_PATCHES].shape[0], window)
    if size not in SWIN_NAMES:
        raise ValueError(
            f"{path} has a picture encoder of {size[0]} channels and window {size[1]}; choose a GroundingDINO with "
            "Swin-T, Swin-B or Swin-L."
        )
    return SimpleNamespace(
        backbone=SWIN_NAMES[size],
        return_interm_indices=[1, 2, 3],
        backbone_freeze_keywords=None,
        position_embedding="sine",
        pe_temperatureH=20,
        pe_temperatureW=20,
        enc_layers=_layers(state, "transformer.encoder.layers."),
        dec_layers=_layers(state, "transformer.decoder.layers."),
        pre_norm=False,
        dim_feedforward=state[_WIDENING].shape[0],
        hidden_dim=state[_WIDENING].shape[1],
        dropout=0.0,
        nheads=8,
        num_queries=len(state[_QUERIES]),
        query_dim=4,
        num_patterns=0,
        num_feature_levels=4,
        enc_n_points=4,
        dec_n_points=4,
        two_stage_type="standard",
        two_stage_bbox_embed_share=False,
        two_stage_class_embed_share=False,
        transformer_activation="relu",
        dec_pred_bbox_embed_share=True,
        dn_box_noise_scale=1.0,
        dn_label_noise_ratio=0.5,
        dn_labelbook_size=0,
        embed_init_tgt=True,
        max_text_len=TOKEN_LIMIT,
        text_encoder_type=BERT_NAME,
        use_text_enhancer=True,
        use_fusion_layer=True,
        # Recomputing saves memory in training only, and warns when there is no gradient.
        use_checkpoint=False,
        use_transformer_ckpt=False,
        use_text_cross_attention=True,
        text_dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.1,
        sub_sentence_present=True,
    )


def bert_config_of(state: Mapping[str, Tensor]) -> BertConfig:
    """Configuration of the text encoder inside a state dict, from its shapes."""
    from transformers import BertConfig

    words, width = state[_WORDS].shape
    return BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=_layers(state, "bert.encoder.layer."),
        num_attention_heads=max(1, width // BERT_HEAD),
        intermediate_size=state[_TEXT_WIDENING].shape[0],
        max_position_embeddings=state[_POSITIONS].shape[0],
    )


def _layers(state: Mapping[str, Tensor], start: str) -> int:
    pattern = re.compile(re.escape(start) + r"(\d+)\.")
    return 1 + max((int(found[1]) for name in state if (found := pattern.match(name))), default=0)


class _EmptyOnMeta(TorchFunctionMode):
    """Weights get no memory and so no random start, which would take longer than reading the file."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if function is torch.empty:
            named["device"] = "meta"
        return function(*args, **named)


@contextmanager
def package_with(tokenizer: Any, bert_model: nn.Module) -> Iterator[ModuleType]:
    """The package's module, building with this tokenizer and text encoder while the context lasts.

    The package would fetch both from the network and print about it, and wrap the text encoder in a way that fails.

    Raises:
        ImportError: when the package, or one that it needs, is missing.
    """
    with warnings.catch_warnings():
        # Deprecations in the package and in timm, which no user can do anything about.
        warnings.simplefilter("ignore")
        try:
            package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
        except ImportError as error:
            raise ImportError(
                f"GroundingDINO .pth files need the package groundingdino-py, which cannot be imported ({error}); run: "
                f"{install_command('groundingdino-py')}, or use a model folder in the transformers layout."
            ) from error
        ours = {
            "BertModelWarper": TextEncoder,
            "get_tokenlizer": SimpleNamespace(
                get_tokenlizer=lambda name: tokenizer, get_pretrained_language_model=lambda name: bert_model
            ),
        }
        theirs = {name: getattr(package, name) for name in ours}
        try:
            for name, value in ours.items():
                setattr(package, name, value)
            yield package
        finally:
            for name, value in theirs.items():
                setattr(package, name, value)


def find_bert(path: str | Path) -> Path:
    """The folder with BERT's vocabulary that goes with a weight file.

    Raises:
        FileNotFoundError: when there is none; the message names the files, the folder and the page.
    """
    parent = Path(path).resolve().parent
    for folder in (parent / BERT_NAME, parent, parent.parent / BERT_NAME):
        if any((folder / name).is_file() for name in VOCABULARY_FILES):
            return folder
    raise FileNotFoundError(
        f"{Path(path).name} needs the vocabulary of BERT: put vocab.txt (or tokenizer.json) of {BERT_PAGE} into "
        f"{parent / BERT_NAME}; its weights are not needed."
    )


def load_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer from a vocabulary alone: ``tokenizer.json``, else ``vocab.txt``.

    Raises:
        FileNotFoundError: when the folder has neither.
        RuntimeError: when the file is broken or is not a vocabulary of BERT.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    path = next((folder / name for name in VOCABULARY_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(VOCABULARY_FILES)}; put one of {BERT_PAGE} there.")
    vocabulary = _read_vocabulary(path)
    reader = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    reader.normalizer = normalizers.BertNormalizer(lowercase=True)
    reader.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reader.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=reader,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            vocabulary = dict(json.loads(text)["model"]["vocab"])
        else:
            vocabulary = {word: number for number, word in enumerate(text.splitlines())}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RuntimeError(f"{path} cannot be read ({error}); copy it again from {BERT_PAGE}.") from error
    missing = [word for word in (*OTHER_TOKENS, STOP, "[PAD]", "[UNK]") if word not in vocabulary]
    if missing:
        raise RuntimeError(
            f"{path} is not a vocabulary of BERT: it lacks {', '.join(missing)}; copy it from {BERT_PAGE}."
        )
    return vocabulary


def resized(height: int, width: int) -> tuple[int, int]:
    """Size of a picture for the model: short side 800, unless the long one would be above 1333; in pixels."""
    short, long = min(height, width), max(height, width)
    side = SHORT_SIDE
    if long / short * side > LONG_SIDE:
        side = max(1, round(LONG_SIDE * short / long))
    other = int(side * long / short)
    return (side, other) if height <= width else (other, side)
