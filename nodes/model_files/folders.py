"""Which models are there, under which names, and where: files and folders of ComfyUI's model folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

import folder_paths

from ..support.types import TOYBOX
from .known_models import BERT, KnownModel, known_model, known_models

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")
MODEL_EXTENSIONS = {".safetensors", ".sft", ".pth", ".pt", ".bin"}


@dataclass(frozen=True)
class Installed:
    """A model that is there.

    Attributes:
        name: as nodes list it; no two have the same.
        folder: model folder, such as ``sams``.
        place: of the file or folder in it, with ``/`` on every system.
        weights: its weight file as core lists it.
        is_folder: whether it is a folder of files.
    """

    name: str
    folder: str
    place: str
    weights: str
    is_folder: bool

    def path(self) -> Path:
        """Full path of the file or folder."""
        path = Path(folder_paths.get_full_path_or_raise(self.folder, self.weights))
        return path.parent if self.is_folder else path


def register_folder(name: str) -> None:
    """Make sure a model folder is known; paths that the user's own settings gave it stay, and stay first."""
    default = str(Path(folder_paths.models_dir) / name)
    paths, extensions = folder_paths.folder_names_and_paths.get(name, ([], set()))
    merged = [*paths] if default in paths else [*paths, default]
    folder_paths.folder_names_and_paths[name] = (merged, {*extensions, *MODEL_EXTENSIONS})


def installed_models(*folders: str) -> list[Installed]:
    """Weight files, and sub-folders in the transformers layout, in the order of the model folders.

    Two of the same name in different model folders are distinguished by the folder: the first keeps the bare name.
    """
    found: dict[str, Installed] = {}
    for folder in folders:
        for place, (weights, is_folder) in _places(folder).items():
            name = place
            while name in found or name == TOYBOX:
                name = f"{folder}/{name}"
            found[name] = Installed(name, folder, place, weights, is_folder)
    return list(found.values())


def model_names(*folders: str) -> list[str]:
    """What a loader offers: ``Toybox``, what is there, then known models that are not there yet.

    A known model has the same name before and after it is fetched, so that workflows stay valid.
    """
    there = [model.name for model in installed_models(*folders)]
    missing = [model.name for model in known_models(*folders) if model.name not in there]
    return [TOYBOX, *there, *missing]


def find_installed(name: str, *folders: str) -> Path | None:
    """Full path of a model that is there, by the name that loaders list or by folder and name; None if it is not."""
    # Workflows from Windows may hold its separators.
    name = name.replace("\\", "/")
    models = installed_models(*folders)
    for model in models:
        if model.name == name:
            return model.path()
    return next((model.path() for model in models if f"{model.folder}/{model.place}" == name), None)


def find_model(name: str, *folders: str) -> Path:
    """Full path of a model that is there.

    Raises:
        FileNotFoundError: naming it, every place where it was searched, and where to have it from.
    """
    path = find_installed(name, *folders)
    if path is None:
        raise FileNotFoundError(missing_message(name, *folders))
    return path


def missing_message(name: str, *folders: str) -> str:
    """One sentence for a model that is not there: which file belongs where, and which page has it."""
    searched = ", ".join(path for folder in folders for path in folder_paths.get_folder_paths(folder))
    model = known_model(name, *folders)
    if model is None:
        known = known_models(*folders)
        example = f" (for example {known[0].name} from {known[0].page})" if known else ""
        return f"{name!r} is not in {searched}; put it there{example} and refresh, or choose {TOYBOX}."
    target = target_folder(model)
    way = "or turn on download" if model.source else "with an account there, since its licence must be accepted"
    return (
        f"{name!r} is not in {searched}; fetch {', '.join(model.files)} from {model.page} into {target}, {way}; "
        f"or choose {TOYBOX}."
    )


def target_folder(model: KnownModel) -> Path:
    """Where the files of a known model belong: in the first path that its model folder has."""
    first = Path(folder_paths.get_folder_paths(model.folder)[0])
    return first / model.name if model.is_folder else first


def weight_files(*folders: str) -> list[str]:
    """``Toybox`` first, then every weight file of these model folders, without repeats."""
    return [TOYBOX, *dict.fromkeys(name for folder in folders for name in folder_paths.get_filename_list(folder))]


def find_weight_file(name: str, *folders: str) -> Path:
    """Full path of a file that :func:`weight_files` lists.

    Raises:
        FileNotFoundError: naming it and where it was searched.
    """
    for folder in folders:
        if name in folder_paths.get_filename_list(folder):
            return Path(folder_paths.get_full_path_or_raise(folder, name))
    raise FileNotFoundError(missing_message(name, *folders))


def bert_folders() -> list[Path]:
    """Folders of BERT's tokenizer, which original GroundingDINO files do not hold."""
    roots = [*folder_paths.get_folder_paths("grounding-dino"), folder_paths.models_dir]
    found = [Path(root) / BERT for root in roots]
    return [folder for folder in found if any((folder / name).is_file() for name in VOCABULARY_FILES)]


def _places(folder: str) -> dict[str, tuple[str, bool]]:
    """Files and folders of one model folder, each with a weight file and whether it is a folder."""
    names = [name for name in folder_paths.get_filename_list(folder) if Path(name).suffix.lower() in MODEL_EXTENSIONS]
    whole = {PurePath(name).parent: name for name in reversed(names) if _is_folder_weight_file(PurePath(name))}
    places: dict[str, tuple[str, bool]] = {}
    for name in names:
        parent = PurePath(name).parent
        if parent.name == BERT:
            continue
        if parent in whole:
            places.setdefault(parent.as_posix(), (whole[parent], True))
        else:
            places[PurePath(name).as_posix()] = (name, False)
    return places


def _is_folder_weight_file(path: PurePath) -> bool:
    """Whether a weight file bears a name that only folders in the transformers layout use."""
    inside = path.parent != PurePath(".")
    return inside and path.stem.split("-")[0] in ("model", "pytorch_model") and path.suffix in (".safetensors", ".bin")
