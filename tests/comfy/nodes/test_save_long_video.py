"""Save Long Video: the film of VAE Decode, in a file, without ever being in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_in_models import make_vae

from mask_guided_video.recipes.films.files import read_film, to_bytes

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def vae(native):
    return native[2]


def latents(frames=10, batch=1, height=4, width=6):
    return torch.randn(batch, 4, frames, height, width, generator=torch.Generator().manual_seed(0))


def save(samples, vae, **values):
    from mask_guided_video.nodes.film_files import SaveLongVideo

    settings = {"filename_prefix": "video/long", "fps": 8.0, "frames_per_part": 4, "overlap": 8, "crf": 1}
    return SaveLongVideo.execute({"samples": samples}, vae, **{**settings, **values})


def read_as_floats(path):
    import av

    with av.open(path) as file:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="gbrpf32le")) for frame in file.decode(video=0)])


def test_it_writes_what_vae_decode_gives(vae, output):
    from nodes import VAEDecode

    # Films of a width in 32s are read as they are; others core pads first.
    samples = latents(width=8)
    answer = save(samples, vae)
    (video,) = answer.args[0]
    assert [path.relative_to(output).as_posix() for path in output.rglob("*.mp4")] == ["video/long_00001_.mp4"]
    assert answer.ui.as_dict()["images"] == [{"filename": "long_00001_.mp4", "subfolder": "video", "type": "output"}]
    assert video.get_dimensions() == (32, 16) and video.get_duration() == pytest.approx(10 / 8)
    decoded = VAEDecode().decode(vae, {"samples": samples})[0]
    written = read_film(Path(video.get_stream_source()))
    # The file has a quarter of the colours' pixels.
    assert written.shape == decoded.shape and (written.mean(-1) - decoded.mean(-1)).abs().mean() < 0.05
    # Core once read films as bytes, and now reads them as floats.
    shown = video.get_components().images
    assert torch.equal(shown, written) or torch.equal(shown, read_as_floats(video.get_stream_source()))


def test_pictures_are_those_of_vae_decode_to_the_bit(vae, output, monkeypatch):
    from mask_guided_video.nodes import film_files
    from nodes import VAEDecode

    written = []
    monkeypatch.setattr(film_files, "write_pictures", lambda path, pictures, *_: written.extend(pictures))
    samples = latents(frames=7)
    save(samples, vae, frames_per_part=3)
    assert torch.equal(torch.stack(written), to_bytes(VAEDecode().decode(vae, {"samples": samples})[0]))


def test_a_batch_is_a_file_for_each_film_and_numbers_go_on(vae, output):
    assert len(save(latents(frames=2, batch=2), vae, filename_prefix="a").args[0]) == 2
    save(latents(frames=1), vae, filename_prefix="a")
    assert sorted(path.name for path in output.iterdir()) == ["a_00001_.mp4", "a_00002_.mp4", "a_00003_.mp4"]
    assert len(read_film(output / "a_00003_.mp4")) == 1


def test_vaes_that_compress_time(output):
    """The frames of all slices, none of them twice; the decoder is a stand-in of Wan's sizes."""
    samples = torch.linspace(-2.0, 2.0, 5)[None, None, :, None, None].expand(1, 16, 5, 2, 3)
    vae = make_vae("wan")
    (video,) = save(samples, vae, frames_per_part=5, overlap=4).args[0]
    assert video.get_dimensions() == (24, 16)
    levels = video.get_components().images.mean((1, 2, 3))
    assert len(levels) == 17
    assert (levels - vae.decode(samples)[0].mean((1, 2, 3))).abs().max() < 0.2


def test_frames_in_the_batch_are_one_film(vae, output):
    """As AnimateDiff has them."""
    (video,) = save(latents(frames=5)[0].transpose(0, 1), vae).args[0]
    assert len(video.get_components().images) == 5


def test_progress_counts_frames_of_all_films(vae, output, monkeypatch):
    from mask_guided_video.nodes import film_files

    seen = []
    monkeypatch.setattr(film_files, "progress", lambda total: lambda done, of: seen.append((done, of)))
    save(latents(frames=5, batch=2), vae)
    assert seen == [(4, 10), (5, 10), (9, 10), (10, 10)]


def test_cancel_leaves_no_file(vae, output, monkeypatch):
    import comfy.model_management as management

    from mask_guided_video.nodes import film_files

    def cancel(done, of):
        raise management.InterruptProcessingException

    monkeypatch.setattr(film_files, "progress", lambda total: cancel)
    with pytest.raises(management.InterruptProcessingException):
        save(latents(), vae)
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_the_graph_is_in_the_file_unless_the_user_objects(vae, output, monkeypatch):
    import av
    from comfy.cli_args import args
    from comfy_api.latest import io

    from mask_guided_video.nodes.film_files import SaveLongVideo

    graph = {"extra_pnginfo": {"workflow": {"nodes": [1]}}, "prompt": {"1": {"inputs": {}}}}
    hidden = io.HiddenHolder.from_dict({getattr(io.Hidden, name): value for name, value in graph.items()})
    monkeypatch.setattr(SaveLongVideo, "hidden", hidden)
    for disabled in (False, True):
        monkeypatch.setattr(args, "disable_metadata", disabled)
        (video,) = save(latents(frames=1), vae).args[0]
        with av.open(video.get_stream_source()) as film:
            found = {name: json.loads(film.metadata[name]) for name in ("workflow", "prompt") if name in film.metadata}
        assert found == ({} if disabled else {"workflow": {"nodes": [1]}, "prompt": {"1": {"inputs": {}}}})


BROKEN = latents()
BROKEN[0, 0, 3] = float("nan")


@pytest.mark.parametrize(
    ("samples", "values", "message"),
    [
        (BROKEN, {}, "NaN"),
        (torch.zeros(1, 4, 0, 4, 4), {}, r"\(1, 4, 0, 4, 4\)"),
        (torch.zeros(4, 8, 8), {}, r"\(4, 8, 8\)"),
        (torch.zeros(1, 16, 2, 4, 4), {}, "16 channels but this VAE decodes 4"),
        (latents(), {"filename_prefix": " "}, "filename_prefix is ' '"),
        (latents(), {"filename_prefix": "./"}, "filename_prefix is './'"),
        (latents(), {"fps": 0.0}, "frames_per_second is 0"),
        (latents(), {"frames_per_part": 0}, "frames_per_part is 0"),
        (latents(), {"overlap": -1}, "overlap is -1"),
        (latents(), {"crf": 99}, "crf is 99"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(vae, output, samples, values, message):
    with pytest.raises(ValueError, match=message):
        save(samples, vae, **values)
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_a_missing_vae_is_named(output):
    with pytest.raises(ValueError, match="no VAE"):
        save(latents(), None)


def test_files_stay_in_the_output_folder(vae, output):
    with pytest.raises(Exception, match="outside the output folder"):
        save(latents(frames=1), vae, filename_prefix="../elsewhere/film")
    assert not (output.parent / "elsewhere").exists()


MEASURE = """
import re, sys
root, comfy, folder, way = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path[:0] = [root, comfy]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import bootstrap
bootstrap.import_package()
import torch
torch.set_num_threads(1)
import folder_paths
folder_paths.output_directory = folder
import mask_guided_video.nodes.film_files as film_files
from mask_guided_video.recipes.films.files import write_film
from comfy_api.input_impl import VideoFromFile
from mask_guided_video.host.models.native_vae import FramewiseAutoencoder, _vae_class


class Enlarge(torch.nn.Module):
    def forward(self, latents):
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


module = Enlarge()
vae = _vae_class()(FramewiseAutoencoder(module, module, module), 8, 4, [torch.float32])
samples = torch.zeros(1, 4, 160, 32, 40)


def peak():
    # Of this program alone; getrusage counts the process that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024


with torch.inference_mode():
    film_files.SaveLongVideo.execute({"samples": samples[:, :, :64]}, vae, "first", 8.0, 4, 0, 14)
    before = peak()
    if way == "streamed":
        film_files.SaveLongVideo.execute({"samples": samples}, vae, "film", 8.0, 4, 0, 14)
    else:
        from pathlib import Path
        write_film(Path(folder) / "whole.mp4", vae.decode(samples)[0])
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how much memory a program had")
@pytest.mark.slow
def test_memory_is_that_of_a_slice(root, comfy_folder, tmp_path):
    """160 frames of 256 x 320 pixels are 157 MB as floats; an encoder keeps some dozens, which 64 have filled."""
    taken = {}
    for way in ("whole", "streamed"):
        command = [sys.executable, "-c", MEASURE, str(root), str(comfy_folder), str(tmp_path), way]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        taken[way] = int(done.stdout)
    film = 160 * 256 * 320 * 3 * 4
    assert taken["whole"] > film and taken["streamed"] < film / 4, taken


def test_in_a_real_comfyui(server, toybox_folder):
    """The node shows its film, keeps the graph in it, and hands it on."""
    import av

    noise = {
        "seed": 1, "frames": 9, "width": 32, "height": 24, "mode": "plain", "window": 8, "stride": 4, "shared": 0.2,
        "batch_size": 2, "vae": ["1", 2],
    }  # fmt: skip
    saving = {"filename_prefix": "films/long", "fps": 12.5, "frames_per_part": 4, "overlap": 0, "crf": 14}
    prompt = {
        "1": {"class_type": "MGV_LoadVideoModel", "inputs": {"model_name": "Toybox"}},
        "2": {"class_type": "MGV_VideoNoise", "inputs": noise},
        "3": {"class_type": "MGV_SaveLongVideo", "inputs": {"samples": ["2", 1], "vae": ["1", 2], **saving}},
        "4": {"class_type": "GetVideoComponents", "inputs": {"video": ["3", 0]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    run = server.run(prompt)
    assert run.succeeded, run.error
    shown = run.outputs["3"]
    assert shown["animated"] == [True]
    assert [entry["filename"] for entry in shown["images"]] == ["long_00001_.mp4", "long_00002_.mp4"]
    for entry in shown["images"]:
        path = server.path_of(entry)
        with av.open(str(path)) as film:
            assert json.loads(film.metadata["prompt"])["2"]["inputs"]["frames"] == 9
            assert float(film.streams.video[0].average_rate) == 12.5
        assert read_film(path).shape == (9, 24, 32, 3)
    assert len(run.outputs["5"]["images"]) == 18
