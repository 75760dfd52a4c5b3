"""Loaders of detectors and segmenters: what they list, find, refuse, fetch and open."""

from __future__ import annotations

import copy
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

SAM_FOLDERS = ("sams", "sam2", "sam3")


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Empty model folders; ``sams`` has two paths, as with extra_model_paths.yaml."""
    import folder_paths

    from mask_guided_video.nodes.model_files.folders import MODEL_EXTENSIONS

    for name in ("grounding-dino", *SAM_FOLDERS):
        paths = [tmp_path / name, tmp_path / "elsewhere" / name] if name == "sams" else [tmp_path / name]
        for path in paths:
            path.mkdir(parents=True)
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, name, ([str(path) for path in paths], set(MODEL_EXTENSIONS))
        )
        folder_paths.filename_list_cache.pop(name, None)
    yield tmp_path
    for name in ("grounding-dino", *SAM_FOLDERS):
        folder_paths.filename_list_cache.pop(name, None)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


class TestFolders:
    def test_paths_are_merged(self, monkeypatch):
        import folder_paths

        from mask_guided_video.nodes.model_files.folders import register_folder

        monkeypatch.setitem(folder_paths.folder_names_and_paths, "sams", (["/elsewhere/sams"], {".onnx"}))
        register_folder("sams")
        register_folder("sams")
        paths, extensions = folder_paths.folder_names_and_paths["sams"]
        assert paths[0] == "/elsewhere/sams" and len(paths) == 2
        assert extensions >= {".onnx", ".safetensors", ".pth"}

    def test_all_are_registered(self):
        import folder_paths

        import mask_guided_video

        assert mask_guided_video.NODE_CLASS_MAPPINGS
        for name in ("grounding-dino", *SAM_FOLDERS):
            assert any(Path(path).name == name for path in folder_paths.get_folder_paths(name))


class TestNames:
    def names(self, *folders):
        from mask_guided_video.nodes.model_files.folders import installed_models

        return [model.name for model in installed_models(*folders)]

    def test_files_and_folders(self, folders):
        put(
            folders / "sams",
            "sam_vit_b.pth",
            "sam-vit-base/model.safetensors",
            "sam-vit-base/original.pt",
            "shards/model-00001-of-00002.safetensors",
            "shards/model-00002-of-00002.safetensors",
            "mine/sam_hq_vit_b.pth",
            "mine/sam_hq_vit_l.pth",
            "notes.txt",
        )
        put(folders / "elsewhere" / "sams", "deep/er/pytorch_model.bin")
        assert set(self.names("sams")) == {
            "sam_vit_b.pth",
            "sam-vit-base",
            "shards",
            "mine/sam_hq_vit_b.pth",
            "mine/sam_hq_vit_l.pth",
            "deep/er",
        }

    def test_text_encoders_are_no_detectors(self, folders):
        put(folders / "grounding-dino", "bert-base-uncased/model.safetensors", "groundingdino_swint_ogc.pth")
        assert self.names("grounding-dino") == ["groundingdino_swint_ogc.pth"]

    def test_same_name_in_two_folders(self, folders):
        from mask_guided_video.nodes.model_files.folders import find_model

        put(folders / "sams", "large.safetensors", "Toybox/model.safetensors")
        put(folders / "sam2", "large.safetensors", "sam2/large.safetensors")
        assert self.names(*SAM_FOLDERS) == [
            "sams/Toybox",
            "large.safetensors",
            "sam2/large.safetensors",
            "sam2/sam2/large.safetensors",
        ]
        paths = {name: find_model(name, *SAM_FOLDERS) for name in self.names(*SAM_FOLDERS)}
        assert len(set(paths.values())) == 4
        assert paths["large.safetensors"] == folders / "sams" / "large.safetensors"
        assert paths["sam2/large.safetensors"] == folders / "sam2" / "large.safetensors"

    def test_name_with_its_folder_stays_valid(self, folders):
        from mask_guided_video.nodes.model_files.folders import find_model

        put(folders / "sam2", "large.safetensors", "deep/small.safetensors")
        assert find_model("sam2/large.safetensors", *SAM_FOLDERS) == folders / "sam2" / "large.safetensors"
        assert find_model("deep\\small.safetensors", *SAM_FOLDERS) == folders / "sam2" / "deep" / "small.safetensors"

    def test_listing_keeps_its_order_and_names(self, folders):
        from mask_guided_video.nodes.model_files.folders import model_names

        before = model_names(*SAM_FOLDERS)
        assert before[0] == "Toybox" and "sam_vit_b_01ec64.pth" in before and "sam2.1-hiera-tiny" in before
        assert "bert-base-uncased" not in model_names("grounding-dino")
        put(folders / "sams", "sam_vit_b_01ec64.pth")
        after = model_names(*SAM_FOLDERS)
        assert after[1] == "sam_vit_b_01ec64.pth" and sorted(after) == sorted(before)

    def test_missing_ones_are_explained(self, folders):
        from mask_guided_video.nodes.model_files.folders import find_model

        with pytest.raises(FileNotFoundError) as known:
            find_model("grounding-dino-tiny", "grounding-dino")
        for part in (
            "'grounding-dino-tiny'",
            str(folders / "grounding-dino"),
            "config.json",
            "model.safetensors",
            "https://huggingface.co/IDEA-Research/grounding-dino-tiny",
            "download",
        ):
            assert part in str(known.value)
        with pytest.raises(FileNotFoundError) as gated:
            find_model("sam3", *SAM_FOLDERS)
        assert "https://huggingface.co/facebook/sam3" in str(gated.value) and "account" in str(gated.value)
        for name in ("../secret", "absent.pth", "/etc/passwd"):
            with pytest.raises(FileNotFoundError) as unknown:
                find_model(name, *SAM_FOLDERS)
            for path in (folders / "sams", folders / "elsewhere" / "sams", folders / "sam2", folders / "sam3"):
                assert str(path) in str(unknown.value)
            assert "https://" in str(unknown.value)


class TestValidation:
    @pytest.fixture(params=["LoadGroundingDINO", "LoadSAM"])
    def loader(self, request):
        import mask_guided_video

        return mask_guided_video.NODE_CLASS_MAPPINGS[f"MGV_{request.param}"]

    def known(self, loader):
        return "grounding-dino-tiny" if loader.__name__ == "LoadGroundingDINO" else "sam-vit-base"

    def test_toybox_and_wires(self, loader, folders):
        assert loader.validate_inputs("Toybox", False) is True
        assert loader.validate_inputs(None, None) is True

    def test_missing(self, loader, folders):
        name = self.known(loader)
        assert name in str(loader.validate_inputs(name, False))
        assert loader.validate_inputs(name, True) is True
        assert "absent" in str(loader.validate_inputs("absent", True))
        with pytest.raises(FileNotFoundError, match=name):
            loader.execute(name)

    def test_there(self, loader, folders):
        name = self.known(loader)
        folder = "grounding-dino" if loader.__name__ == "LoadGroundingDINO" else "sams"
        put(folders / folder, f"{name}/model.safetensors")
        assert loader.validate_inputs(name, False) is True

    def test_gated_models_are_never_fetched(self, folders):
        from mask_guided_video.nodes.segmentation_models import LoadSAM

        assert "account" in LoadSAM.validate_inputs("sam3", True)
        with pytest.raises(FileNotFoundError, match="account"):
            LoadSAM.execute("sam3", download=True)


class TestDownload:
    """Whether the widget does what it says; how files come is tested with the downloads."""

    @pytest.fixture
    def fetched(self, monkeypatch, root):
        """Fetching copies the Toybox's models instead, and notes what it was asked for."""
        from mask_guided_video.nodes.model_files import loading

        asked = []

        def copy_model(model, folder, progress, origins=()):
            asked.append((model.name, folder))
            kind = "detector" if model.folder == "grounding-dino" else "segmenter"
            if model.is_folder:
                shutil.copytree(root / "toybox" / kind, folder)
                return folder
            folder.mkdir(exist_ok=True)
            (folder / model.name).write_bytes(b"")
            return folder / model.name

        monkeypatch.setattr(loading, "fetch_model", copy_model)
        return asked

    def test_only_when_asked_for(self, folders, fetched):
        from mask_guided_video.nodes.detection import LoadGroundingDINO

        with pytest.raises(FileNotFoundError):
            LoadGroundingDINO.execute("grounding-dino-tiny")
        assert fetched == []
        model = LoadGroundingDINO.execute("grounding-dino-tiny", download=True).args[0]
        assert model.name == "grounding-dino-tiny"
        assert fetched == [("grounding-dino-tiny", folders / "grounding-dino" / "grounding-dino-tiny")]
        LoadGroundingDINO.execute("grounding-dino-tiny", download=True)
        LoadGroundingDINO.execute("grounding-dino-tiny")
        assert len(fetched) == 1

    def test_first_path_is_the_target(self, folders, fetched):
        from mask_guided_video.nodes.segmentation_models import LoadSAM

        LoadSAM.execute("sam-vit-base", download=True)
        assert fetched == [("sam-vit-base", folders / "sams" / "sam-vit-base")]

    def test_original_detectors_bring_their_tokenizer(self, folders, fetched, monkeypatch):
        import folder_paths

        from mask_guided_video.nodes.model_files.folders import bert_folders
        from mask_guided_video.nodes.model_files.loading import model_path

        monkeypatch.setattr(folder_paths, "models_dir", str(folders))
        assert bert_folders() == []
        path = model_path("groundingdino_swint_ogc.pth", True, "detector", "grounding-dino")
        assert path == folders / "grounding-dino" / "groundingdino_swint_ogc.pth"
        assert [name for name, _ in fetched] == ["bert-base-uncased", "groundingdino_swint_ogc.pth"]
        assert bert_folders() == [folders / "grounding-dino" / "bert-base-uncased"]
        fetched.clear()
        assert model_path("groundingdino_swint_ogc.pth", True, "detector", "grounding-dino") == path
        assert fetched == []


class TestPrecision:
    def test_auto(self, monkeypatch):
        import comfy.model_management as management

        from mask_guided_video.nodes.support.host import weight_dtype

        for device, bf16, expected in (
            ("cpu", False, torch.float32),
            ("cuda", True, torch.bfloat16),
            ("cuda", False, torch.float32),
            ("mps", True, torch.float32),
        ):
            monkeypatch.setattr(management, "get_torch_device", lambda name=device: torch.device(name))
            monkeypatch.setattr(management, "should_use_bf16", lambda *arguments, answer=bf16: answer)
            assert weight_dtype("auto", half_is_safe=True) == expected
            assert weight_dtype("auto", half_is_safe=False) == torch.float32
        assert [weight_dtype(name, False) for name in ("fp32", "fp16", "bf16")] == [
            torch.float32,
            torch.float16,
            torch.bfloat16,
        ]

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_half_precision_finds_the_same(self, clip, precision):
        boxes = detect(clip, loader={"precision": "fp32"})[0]
        halves = detect(clip, loader={"precision": precision})[0]
        assert [len(found) for found in halves] == [len(found) for found in boxes]
        for found, half in zip(boxes, halves, strict=True):
            for box, other in zip(found, half, strict=True):
                assert all(abs(box[side] - other[side]) < 2 for side in ("x", "y", "width", "height"))


@pytest.fixture(scope="module")
def clip(root):
    """A film of a red ball and a blue square on grass."""
    from mask_guided_video.toybox import world

    if not (root / "toybox" / "detector" / "model.safetensors").is_file():
        pytest.skip("this checkout has no Toybox weights")
    ball = world.SceneObject("red", "ball", "right", 12.0, (20.0, 20.0), 24.0)
    square = world.SceneObject("blue", "square", "left", 12.0, (44.0, 44.0), 24.0)
    return torch.from_numpy(world.render(world.Scene("grass", (ball, square))).frames)


def detect(frames, loader=None, **values):
    from mask_guided_video.nodes.detection import DetectObjects, LoadGroundingDINO

    settings = {
        "phrases": "red ball",
        "box_threshold": 0.35,
        "text_threshold": 0.25,
        "nms_threshold": 0.7,
        "max_objects": 1,
    }
    model = LoadGroundingDINO.execute("Toybox", **(loader or {})).args[0]
    return DetectObjects.execute(model, frames, **{**settings, **values}).args


class TestDetectObjects:
    def test_defaults_are_as_before(self, clip):
        from mask_guided_video.nodes.detection import DetectObjects

        inputs = DetectObjects.define_schema().inputs
        assert [entry.id for entry in inputs[:7]] == [
            "model", "image", "phrases", "box_threshold", "text_threshold", "nms_threshold", "max_objects",
        ]  # fmt: skip
        assert all(entry.optional for entry in inputs[7:])
        defaults = {entry.id: entry.default for entry in inputs[7:]}
        assert detect(clip, **defaults)[0] == detect(clip)[0]

    def test_every_so_many_frames(self, clip):
        boxes, preview, report = detect(clip, detect_every=3)
        assert [bool(found) for found in boxes] == [True, False, False, True, False, False, True, True]
        assert len(preview) == len(boxes) == 8
        assert "Looked at 4 of 8 frames" in report and "red ball: found in all 4 frames" in report

    def test_limits(self, clip):
        phrases = "red ball, blue square"
        many = detect(clip, phrases=phrases, box_threshold=0.0, text_threshold=0.0, nms_threshold=1.0, max_objects=5)
        assert all(len(found) == 10 for found in many[0])
        few = detect(
            clip, phrases=phrases, box_threshold=0.0, text_threshold=0.0, nms_threshold=1.0, max_objects=5, max_boxes=3
        )
        assert few[0] == [found[:3] for found in many[0]]

    def test_nms_per_phrase(self, clip):
        values = {"phrases": "ball, red ball", "box_threshold": 0.2, "text_threshold": 0.1}
        apart = detect(clip, nms_per_phrase=True, **values)[0]
        once = detect(clip, **values)[0]
        assert all({box["label"] for box in found} == {"ball", "red ball"} for found in apart)
        assert sum(map(len, once)) < sum(map(len, apart))

    def test_together(self, clip):
        boxes = detect(clip, phrases="red ball, blue square", ask="together")[0]
        assert {box["label"] for found in boxes for box in found} <= {"red ball", "blue square"}
        assert any(boxes)

    @pytest.mark.parametrize("ask", [pytest.param("one by one", marks=pytest.mark.slow), "together"])
    def test_200_phrases(self, clip, ask):
        phrases = ", ".join(["red ball", *(f"thing {number}" for number in range(199))])
        boxes, _, report = detect(clip[:1], phrases=phrases, ask=ask)
        assert len(boxes) == 1 and len(report.splitlines()) == 200
        assert all(any(box["label"] == "red ball" for box in found) for found in boxes) or ask == "together"

    @pytest.mark.parametrize(
        ("phrases", "message"),
        [
            ("", "write at least one thing to find"),
            ("  ", "write at least one thing to find"),
            (" , ", "phrases is ' , ', which names nothing; write what is meant"),
            (".\n;", "which names nothing; write what is meant"),
        ],
    )
    def test_no_phrases(self, clip, phrases, message):
        with pytest.raises(ValueError, match=message):
            detect(clip, phrases=phrases)

    def test_four_channels_one_frame_odd_size(self, clip):
        picture = torch.cat([clip, torch.rand(*clip.shape[:3], 1)], -1)[:1, :61, :47]
        boxes, preview, _ = detect(picture)
        assert boxes == detect(clip[:1, :61, :47])[0] and preview.shape[-1] == 3

    def test_nan_names_the_frame(self, clip):
        broken = clip.clone()
        broken[5, 3, 3, 1] = float("nan")
        with pytest.raises(ValueError, match="the video holds NaN or infinite values in frame 5"):
            detect(broken)

    def test_film_is_not_copied(self, clip):
        from mask_guided_video.nodes.support.inputs import frames_of

        wide = torch.cat([clip, clip[..., :1]], -1)
        assert frames_of(wide).data_ptr() == wide.data_ptr()
        before = copy.deepcopy(clip)
        detect(clip)
        assert torch.equal(clip, before)

    def test_cancel_in_the_middle_leaves_it_usable(self, clip):
        import comfy.model_management as management

        from mask_guided_video.nodes.detection import DetectObjects, LoadGroundingDINO

        model = LoadGroundingDINO.execute("Toybox").args[0]
        settings = ("red ball", 0.35, 0.25, 0.7, 1)
        whole = DetectObjects.execute(model, clip, *settings).args[0]
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            DetectObjects.execute(model, clip, *settings)
        assert DetectObjects.execute(model, clip, *settings).args[0] == whole


def follow(model, frames, boxes):
    from mask_guided_video.nodes.tracking import TrackMasks

    inputs = TrackMasks.define_schema().inputs
    values = {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    return TrackMasks.execute(**{**values, "model": model, "image": frames, "boxes": boxes}).args


def check_masks(model):
    """A square is followed through a film, and again after the model was unloaded."""
    import comfy.model_management as management
    from tiny_memory_models import tiny_film

    film = tiny_film(5)
    box = {"x": 8.0, "y": 12.0, "width": 16.0, "height": 18.0, "label": "square", "score": 0.9}
    boxes = [[box], [], [], [], []]
    tracks, mask, _, report = follow(model, film, boxes)
    assert mask.shape == film.shape[:3] and tracks.labels == ("square",) and "square" in report
    assert mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1
    management.unload_all_models()
    assert torch.equal(follow(model, film, boxes)[1], mask)


def save(model, folder):
    """As a folder in the transformers layout; ``save_pretrained`` of some versions asks the network about EdgeTAM."""
    from safetensors.torch import save_model

    folder.mkdir()
    model.config.to_json_file(folder / "config.json", use_diff=False)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


class TestFamilies:
    """Every kind of model in its folder, opened by what it holds, run and unloaded; tiny ones with random weights."""

    def load(self, name, **values):
        from mask_guided_video.nodes.segmentation_models import LoadSAM

        return LoadSAM.execute(name, **values).args[0]

    @pytest.mark.parametrize("precision", ["auto", "bf16"])
    @pytest.mark.parametrize("family", ["sam2", "edgetam", "sam3_tracker"])
    def test_models_with_a_memory(self, folders, family, precision):
        import tiny_memory_models
        import transformers

        if family == "edgetam":
            pytest.importorskip("timm")
        if family == "sam3_tracker" and not hasattr(transformers, "Sam3TrackerVideoModel"):
            pytest.skip("this version of transformers has no SAM 3")
        place = "sam3" if family == "sam3_tracker" else "sam2"
        save(getattr(tiny_memory_models, f"tiny_{family}")(), folders / place / "tiny")
        check_masks(self.load("tiny", precision=precision))

    @pytest.mark.parametrize("precision", ["auto", "fp16", "bf16"])
    def test_picture_models(self, folders, root, precision):
        shutil.copytree(root / "toybox" / "segmenter", folders / "elsewhere" / "sams" / "tiny")
        check_masks(self.load("tiny", precision=precision))

    def test_one_file_without_its_folder(self, folders, root):
        shutil.copy(root / "toybox" / "segmenter" / "model.safetensors", folders / "sams" / "tiny.safetensors")
        check_masks(self.load("tiny.safetensors"))

    def test_another_family_in_the_folder(self, folders, root):
        shutil.copytree(root / "toybox" / "detector", folders / "sams" / "detector")
        shutil.copytree(root / "toybox" / "segmenter", folders / "grounding-dino" / "segmenter")
        shutil.copy(root / "toybox" / "detector" / "model.safetensors", folders / "sam2" / "detector.safetensors")
        shutil.copy(root / "toybox" / "segmenter" / "model.safetensors", folders / "grounding-dino" / "sam.safetensors")
        with pytest.raises(ValueError, match="type 'grounding-dino'; choose .*sam2_video"):
            self.load("detector")
        with pytest.raises(ValueError, match="is not a SAM, SAM-HQ or SAM 2 file"):
            self.load("detector.safetensors")
        from mask_guided_video.nodes.detection import LoadGroundingDINO

        with pytest.raises(ValueError, match="type 'sam'; choose .*grounding-dino"):
            LoadGroundingDINO.execute("segmenter")
        with pytest.raises(ValueError, match="is not a GroundingDINO file"):
            LoadGroundingDINO.execute("sam.safetensors")

    @pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
    def test_broken_files(self, folders, name):
        from mask_guided_video.nodes.detection import LoadGroundingDINO

        for folder in ("sams", "grounding-dino"):
            (folders / folder / name).write_bytes(b"not a model")
        for load in (self.load, LoadGroundingDINO.execute):
            with pytest.raises(RuntimeError, match=f"{name} (cannot be read|is not a weight file).*copy it again"):
                load(name)


def graph(**loaders):
    """A film of nothing, looked through and followed; with the widgets that workflows of before have."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 0x40A040}},
        "2": {"class_type": "MGV_LoadGroundingDINO", "inputs": {"model_name": "Toybox", **loaders}},
        "3": {
            "class_type": "MGV_DetectObjects",
            "inputs": {
                "model": ["2", 0], "image": ["1", 0], "phrases": "red ball", "box_threshold": 0.35,
                "text_threshold": 0.25, "nms_threshold": 0.7, "max_objects": 1,
            },
        },
        "4": {"class_type": "MGV_LoadSAM", "inputs": {"model_name": "Toybox"}},
        "5": {
            "class_type": "MGV_TrackMasks",
            "inputs": {
                "model": ["4", 0], "image": ["1", 0], "boxes": ["3", 0], "points": "", "prompt_frame": 0, "max_gap": 8,
                "extend": 2, "minimum_seen": 2, "max_objects": 0, "soft": False,
            },
        },
        "6": {"class_type": "MaskToImage", "inputs": {"mask": ["5", 1]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(server):
    return server.run(graph())


@pytest.mark.slow
class TestInTheServer:
    def test_prompts_of_before_run(self, first):
        assert first.succeeded, first.error
        assert len(first.outputs["7"]["images"]) == 3 and "not found in any of 3" in first.outputs["8"]["text"][0]

    def test_unchanged_runs_nothing_again(self, server, first):
        assert server.run(graph()).cached == set(graph())

    def test_a_change_downstream_reloads_no_model(self, server, first):
        changed = graph()
        changed["3"]["inputs"]["detect_every"] = 2
        run = server.run(changed)
        assert run.succeeded and run.cached == {"1", "2", "4"}

    @pytest.mark.parametrize("name", ["grounding-dino-tiny", "absent.pth"])
    def test_missing_model_is_said_before_anything_runs(self, server, name):
        request = urllib.request.Request(
            server.url + "/prompt",
            json.dumps({"prompt": graph(model_name=name)}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        errors = json.loads(refused.value.read())["node_errors"]["2"]["errors"]
        refused.value.close()
        for part in (name, "models/grounding-dino", "https://huggingface.co/IDEA-Research/grounding-dino-tiny"):
            assert part in errors[0]["details"]

    def test_known_models_are_offered(self, object_info):
        for node, name in (("MGV_LoadGroundingDINO", "grounding-dino-tiny"), ("MGV_LoadSAM", "sam_vit_b_01ec64.pth")):
            options = object_info[node]["input"]["required"]["model_name"][1]["options"]
            assert options[0] == "Toybox" and name in options
            assert object_info[node]["input"]["optional"]["download"][1]["default"] is False
