"""Models that are known to work: what they are called, where they belong, and the page they come from."""

from __future__ import annotations

from dataclasses import dataclass

HUGGING_FACE = "https://huggingface.co"
META_FILES = "https://dl.fbaipublicfiles.com"

# Where files may come from, and where those addresses may lead on to; nothing else is ever requested.
ORIGINS = (HUGGING_FACE, "https://*.huggingface.co", "https://*.hf.co", META_FILES)


@dataclass(frozen=True)
class KnownModel:
    """A model that can be had.

    Attributes:
        name: of its file or folder.
        folder: model folder it belongs in, such as ``sams``.
        page: to read about it and to fetch it by hand.
        files: what belongs to it; the weights come last, so that a folder without them is known to be incomplete.
        extras: files that only some versions of the libraries read; a page may lack them.
        source: address that the files are under; empty when the page needs an account.
        is_folder: whether the files lie in a folder of the model's name.
        needs: name of another known model that must be there too.
        sha256: how the digest of its (single) file begins.
    """

    name: str
    folder: str
    page: str
    files: tuple[str, ...]
    extras: tuple[str, ...] = ()
    source: str = ""
    is_folder: bool = True
    needs: str = ""
    sha256: str = ""


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_EXTRAS = ("vocab.txt", "special_tokens_map.json")
BERT = "bert-base-uncased"


def _repository(
    repository: str, folder: str, files: tuple[str, ...], extras: tuple[str, ...] = (), weights: bool = True
) -> KnownModel:
    """A folder in the transformers layout."""
    page = f"{HUGGING_FACE}/{repository}"
    files = (*files, "model.safetensors") if weights else files
    return KnownModel(repository.split("/")[1], folder, page, files, extras, f"{page}/resolve/main")


def _file(name: str, folder: str, page: str, source: str, needs: str = "", sha256: str = "") -> KnownModel:
    """A single weight file."""
    return KnownModel(name, folder, page, (name,), (), source, False, needs, sha256)


def _hugging_face_file(name: str, folder: str, repository: str, needs: str = "") -> KnownModel:
    page = f"{HUGGING_FACE}/{repository}"
    return _file(name, folder, page, f"{page}/resolve/main", needs)


def _sam_file(size: str, digest: str) -> KnownModel:
    """A file of segment-anything, which bears the start of its digest in its name."""
    page = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
    return _file(f"sam_vit_{size}_{digest}.pth", "sams", page, f"{META_FILES}/segment_anything", sha256=digest)


_DETECTOR_FILES = ("config.json", "preprocessor_config.json", *TOKENIZER_FILES)
_PICTURE_FILES = ("config.json", "preprocessor_config.json")
_FILM_EXTRAS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")

KNOWN_MODELS = (
    _repository("IDEA-Research/grounding-dino-tiny", "grounding-dino", _DETECTOR_FILES, TOKENIZER_EXTRAS),
    _repository("IDEA-Research/grounding-dino-base", "grounding-dino", _DETECTOR_FILES, TOKENIZER_EXTRAS),
    *(
        _repository(f"openmmlab-community/{name}", "grounding-dino", _DETECTOR_FILES, TOKENIZER_EXTRAS)
        for name in (
            "mm_grounding_dino_tiny_o365v1_goldg_v3det",
            "mm_grounding_dino_base_all",
            "mm_grounding_dino_large_all",
        )
    ),
    *(
        _hugging_face_file(name, "grounding-dino", "ShilongLiu/GroundingDINO", BERT)
        for name in ("groundingdino_swint_ogc.pth", "groundingdino_swinb_cogcoor.pth")
    ),
    _repository(f"google-bert/{BERT}", "grounding-dino", ("config.json", *TOKENIZER_FILES), TOKENIZER_EXTRAS, False),
    *(_repository(f"facebook/sam-vit-{size}", "sams", _PICTURE_FILES) for size in ("base", "large", "huge")),
    _sam_file("b", "01ec64"),
    _sam_file("l", "0b3195"),
    _sam_file("h", "4b8939"),
    *(_hugging_face_file(f"sam_hq_vit_{size}.pth", "sams", "lkeab/hq-sam") for size in ("b", "l", "h")),
    *(
        _repository(f"facebook/sam2.1-hiera-{size}", "sam2", ("config.json",), _FILM_EXTRAS)
        for size in ("tiny", "small", "base-plus", "large")
    ),
    *(
        _hugging_face_file(f"sam2.1_hiera_{size}.safetensors", "sam2", "Kijai/sam2-safetensors")
        for size in ("tiny", "small", "base_plus", "large")
    ),
    _repository("yonigozlan/EdgeTAM-hf", "sam2", ("config.json",), _FILM_EXTRAS),
    # Its licence must be accepted with an account, so that it can only be fetched by hand.
    KnownModel(
        "sam3",
        "sam3",
        f"{HUGGING_FACE}/facebook/sam3",
        ("config.json", "processor_config.json", *TOKENIZER_FILES, "model.safetensors"),
    ),
)


def known_models(*folders: str) -> list[KnownModel]:
    """Those that belong in these folders and are of use by themselves, in the order of the folders."""
    return [model for folder in folders for model in KNOWN_MODELS if model.folder == folder and model.name != BERT]


def known_model(name: str, *folders: str) -> KnownModel | None:
    """The model of this name, if it is known and belongs in one of these folders."""
    return next((model for model in KNOWN_MODELS if model.name == name and model.folder in folders), None)
