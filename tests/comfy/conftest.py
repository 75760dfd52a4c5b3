"""A real ComfyUI server on a free port, a tiny random model, and the bundled workflow in the server's form."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packs import ANIMATEDIFF, found_pack, pack_folder
from saved_graphs import prompt_of, saved_values

START_SECONDS = 180
RUN_SECONDS = 300


@dataclass
class Server:
    """A running ComfyUI."""

    url: str
    folder: Path
    process: subprocess.Popen

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} answered {error.code}: {error.read().decode()[:2000]}")
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]

    def wait(self, prompt_id: str) -> Run:
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id]["status"]["messages"]:
                messages = dict(history[prompt_id]["status"]["messages"])
                if messages.keys() & {"execution_success", "execution_error", "execution_interrupted"}:
                    return Run(history[prompt_id]["outputs"], messages)
            time.sleep(0.2)
        pytest.fail(f"the server did not finish within {RUN_SECONDS} s:\n{self.log()[-3000:]}")

    def run(self, prompt: dict[str, Any]) -> Run:
        return self.wait(self.queue(prompt))

    def empty_cache(self) -> None:
        """Forget all results: of nodes whose results are cached, the history has no outputs.

        ComfyUI does so after the next prompt, or within ten seconds of the last one; here after an empty one.
        """
        self.post("/free", {"free_memory": True})
        picture = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        assert self.run({"1": picture, "2": shown}).succeeded

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def path_of(self, entry: dict[str, str]) -> Path:
        """Where a file lies that a node's output names."""
        return self.folder / entry["type"] / entry["subfolder"] / entry["filename"]


@dataclass
class Run:
    """What came of a prompt."""

    outputs: dict[str, Any]
    messages: dict[str, Any]

    @property
    def succeeded(self) -> bool:
        return "execution_success" in self.messages

    @property
    def error(self) -> str:
        return self.messages.get("execution_error", {}).get("exception_message", "")

    @property
    def cached(self) -> set[str]:
        return set(self.messages.get("execution_cached", {}).get("nodes", []))


@contextmanager
def running_server(comfy_folder: Path, folder: Path, packs: Mapping[str, Path]) -> Iterator[Server]:
    """Run ComfyUI with some custom nodes and its files in a folder of their own.

    Args:
        comfy_folder: the checkout.
        folder: empty; takes models, output and the log.
        packs: what to link into ``custom_nodes``, by name.
    """
    (folder / "custom_nodes").mkdir()
    try:
        for name, path in packs.items():
            (folder / "custom_nodes" / name).symlink_to(path, target_is_directory=path.is_dir())
    except OSError as error:
        pytest.skip(f"this system makes no links to folders ({error})")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(folder)]
    command += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=comfy_folder, stdout=log, stderr=log, env=environment)
    running = Server(f"http://127.0.0.1:{port}", folder, process)
    try:
        _wait_until_up(running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def start_server(comfy_folder: Path) -> Any:
    """``running_server`` of this checkout."""
    return partial(running_server, comfy_folder)


@pytest.fixture
def as_in_a_node() -> Iterator[None]:
    """ComfyUI runs nodes and samplers without gradients."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def kernels_of_long_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Region channels, as for films of real length; tiny ones would all get an explicit bias."""
    from mask_guided_video.attention_patches.guidance import plan as guidance_plan

    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)


@pytest.fixture(scope="session")
def server(
    start_server: Any, root: Path, comfy_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """ComfyUI with this pack, loaders of tiny random models in the place of its own, and AnimateDiff where it is there.

    One server for all tests that can share it: a start takes some fifteen seconds.
    """
    stand_ins = root / "tests" / "support" / "comfyui" / "stand_in_models.py"
    packs = {"mask-guided-video": root, stand_ins.name: stand_ins}
    animatediff = found_pack(comfy_folder, ANIMATEDIFF)
    if animatediff is not None:
        packs[animatediff.name] = animatediff
    with start_server(tmp_path_factory.mktemp("comfyui"), packs) as running:
        yield running


@pytest.fixture(scope="session")
def animatediff_server(server: Server, comfy_folder: Path) -> Server:
    """The server, where it has AnimateDiff Evolved; the test is skipped elsewhere."""
    pack_folder(comfy_folder, ANIMATEDIFF)
    return server


def _wait_until_up(server: Server) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            pytest.fail(f"ComfyUI ended while starting:\n{server.log()[-3000:]}")
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"ComfyUI did not start within {START_SECONDS} s:\n{server.log()[-3000:]}")


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


@pytest.fixture(scope="session")
def toybox_folder(root: Path) -> Path:
    """The bundled text-to-video model; the test is skipped in a checkout without weights."""
    folder = root / "toybox" / "text_to_video"
    if not (folder / "unet.safetensors").is_file():
        pytest.skip("this checkout has no Toybox weights")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(comfy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video model of the Toybox's kind, smaller still and with random weights."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel

    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.unet import LaVieUNet
    from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LaVieConfig(
        block_out_channels=(16, 32),
        attention_levels=(True, True),
        layers_per_block=1,
        num_heads=2,
        cross_attention_dim=32,
        norm_num_groups=8,
        rotary_dim=8,
        prediction_type="v_prediction",
        native_frames=8,
    )
    config.save(folder / "config.json")
    save_file(
        {name: value.half() for name, value in LaVieUNet(config).state_dict().items()}, folder / "unet.safetensors"
    )
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        norm_num_groups=8,
        mid_block_add_attention=False,
    ).save_pretrained(folder / "vae")
    words = "a red blue ball square moves left stays still on sand and".split()
    make_word_tokenizer(words).save_pretrained(folder / "tokenizer")
    T5EncoderModel(
        T5Config(vocab_size=3 + len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)
    ).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def native(tiny_folder: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the tiny model."""
    import torch

    from mask_guided_video.host.models.loading import load_native_toybox

    with torch.inference_mode():
        return load_native_toybox(tiny_folder)


@pytest.fixture(scope="session")
def workflow(root: Path) -> dict[str, Any]:
    """The bundled workflow as the frontend saved it."""
    return json.loads((root / "workflows" / "mask_refine_toybox.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def named_values() -> Any:
    return saved_values


@pytest.fixture(scope="session")
def to_prompt() -> Any:
    return prompt_of


@pytest.fixture(scope="session")
def workflow_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The bundled workflow in the form that the server's API takes."""
    return prompt_of(workflow, object_info)


def write_toybox_film(path: Path, frames: int = 12) -> Path:
    """A red ball that moves right above a yellow triangle that moves left, as a video file without sound."""
    import av

    from mask_guided_video.toybox import world

    ball = world.SceneObject("red", "ball", "right", 10.0, (12.0, 24.0), 40.0)
    triangle = world.SceneObject("yellow", "triangle", "left", 11.0, (51.0, 44.0), 38.0)
    pictures = (world.render(world.Scene("sea", (ball, triangle)), frames).frames * 255).round().astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = world.SIZE, world.SIZE, "yuv420p"
        stream.options = {"crf": "8"}
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_film(root: Path) -> Any:
    """``write_toybox_film``; the test is skipped in a checkout without the Toybox's detector and segmenter."""
    if not all((root / "toybox" / name / "model.safetensors").is_file() for name in ("detector", "segmenter")):
        pytest.skip("this checkout has no Toybox weights")
    return write_toybox_film
