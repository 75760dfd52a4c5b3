"""Fetching models from a server on this machine: whole, resumed, cancelled, refused."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.comfy

SIZE = 10_240_000
WEIGHTS = bytes(range(256)) * (SIZE // 256)
FILES = {"/config.json": b'{"model_type": "sam"}', "/model.safetensors": WEIGHTS}


class Cancelled(Exception):
    pass


class Page(BaseHTTPRequestHandler):
    """Serves FILES; the server's attributes make it misbehave."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", server.moved_to + self.path.removeprefix("/moved"))
            self.end_headers()
            return
        body = server.files.get(self.path)
        if body is None or server.status != 200:
            self.send_error(404 if body is None else server.status)
            return
        first = 0
        if self.headers.get("Range") and server.resumes:
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    served.asked, served.files, served.status, served.resumes, served.cut = [], dict(FILES), 200, True, None
    served.tells_length = True
    served.url = f"http://127.0.0.1:{served.server_port}"
    served.moved_to = served.url
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def model(server):
    from mask_guided_video.nodes.model_files.known_models import KnownModel

    names = tuple(name.removeprefix("/") for name in FILES)
    return KnownModel("tiny", "sams", "https://example.org/tiny", names, ("extra.json",), server.url)


def fetch(model, folder, server, progress=lambda done, total: None):
    from mask_guided_video.nodes.model_files.downloads import fetch_model

    return fetch_model(model, folder, progress, [server.url])


def part_of(folder, size=SIZE):
    return folder / f"model.safetensors.{size}.part"


class TestWhole:
    def test_files_and_progress(self, server, model, tmp_path, caplog):
        seen = []
        caplog.set_level("INFO")
        path = fetch(model, tmp_path / "sams" / "tiny", server, lambda done, total: seen.append((done, total)))
        assert path == tmp_path / "sams" / "tiny"
        assert {file.name: file.read_bytes() for file in path.iterdir()} == {
            name.removeprefix("/"): body for name, body in FILES.items()
        }
        assert seen[-1] == (SIZE, SIZE) and sorted(seen[-5:]) == seen[-5:]
        assert f"{server.url}/model.safetensors (10 MB) to {path / 'model.safetensors'}" in caplog.text
        assert "has no extra.json" in caplog.text

    def test_weights_come_last(self, server, model, tmp_path):
        fetch(model, tmp_path, server)
        assert [path for path, _ in server.asked] == ["/extra.json", *FILES]

    def test_what_is_there_is_kept(self, server, model, tmp_path):
        (tmp_path / "config.json").write_text("mine")
        fetch(model, tmp_path, server)
        assert (tmp_path / "config.json").read_text() == "mine"
        assert "/config.json" not in [path for path, _ in server.asked]

    def test_single_file(self, server, model, tmp_path):
        single = replace(model, files=("model.safetensors",), extras=(), is_folder=False)
        assert fetch(single, tmp_path, server) == tmp_path / "model.safetensors"

    def test_digest(self, server, model, tmp_path):
        single = replace(model, files=("model.safetensors",), extras=(), is_folder=False)
        fetch(replace(single, sha256=hashlib.sha256(WEIGHTS).hexdigest()[:6]), tmp_path / "right", server)
        with pytest.raises(RuntimeError, match="digest does not begin with 000000"):
            fetch(replace(single, sha256="000000"), tmp_path / "wrong", server)
        assert not list((tmp_path / "wrong").iterdir())

    def test_redirect_inside_the_table(self, server, model, tmp_path):
        fetch(replace(model, source=f"{server.url}/moved"), tmp_path, server)
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


class TestBroken:
    def test_cancelled_then_gone_on_with(self, server, model, tmp_path):
        def cancel(done, total):
            if done > 3_000_000:
                raise Cancelled

        with pytest.raises(Cancelled):
            fetch(model, tmp_path, server, cancel)
        begun = part_of(tmp_path)
        size = begun.stat().st_size
        assert 3_000_000 < size < SIZE and not (tmp_path / "model.safetensors").exists()
        fetch(model, tmp_path, server)
        assert server.asked[-1] == ("/model.safetensors", f"bytes={size}-")
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS and not begun.exists()

    def test_cut_short(self, server, model, tmp_path):
        server.cut = 5_000_000
        with pytest.raises(RuntimeError, match=r"5000000 of 10240000 bytes came.*run again.*https://example.org/tiny"):
            fetch(model, tmp_path, server)
        server.cut = None
        fetch(model, tmp_path, server)
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS

    def test_unknown_length_starts_anew(self, server, model, tmp_path):
        def cancel(done, total):
            raise Cancelled

        server.tells_length = False
        with pytest.raises(Cancelled):
            fetch(model, tmp_path, server, cancel)
        fetch(model, tmp_path, server)
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
        assert all(wanted is None for _, wanted in server.asked) and not list(tmp_path.glob("*.part"))

    def test_whole_but_not_yet_named(self, server, model, tmp_path):
        part_of(tmp_path).write_bytes(WEIGHTS)
        fetch(model, tmp_path, server)
        assert "/model.safetensors" not in [path for path, _ in server.asked]
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS

    @pytest.mark.parametrize("size", [SIZE + 1, 100])
    def test_another_length_starts_anew(self, server, model, tmp_path, size):
        part_of(tmp_path, size).write_bytes(b"old" * 50)
        server.resumes = False
        fetch(model, tmp_path, server)
        assert [file.name for file in tmp_path.iterdir() if file.suffix == ".part"] == []
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS

    def test_changed_on_the_server(self, server, model, tmp_path):
        part_of(tmp_path, SIZE + 1).write_bytes(b"old")
        with pytest.raises(RuntimeError, match="changed since it was begun"):
            fetch(model, tmp_path, server)
        fetch(model, tmp_path, server)
        assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS

    @pytest.mark.parametrize("status", [401, 403, 500])
    def test_refused(self, server, model, tmp_path, status):
        server.status = status
        with pytest.raises(RuntimeError, match=rf"config.json cannot be had \({status} .*by hand from https://example"):
            fetch(replace(model, extras=()), tmp_path, server)
        assert not list(tmp_path.iterdir())

    def test_lacking(self, server, model, tmp_path):
        del server.files["/config.json"]
        with pytest.raises(RuntimeError, match="config.json cannot be had .404"):
            fetch(model, tmp_path, server)

    def test_offline(self, server, model, tmp_path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
        from mask_guided_video.nodes.model_files.downloads import fetch_model

        with pytest.raises(RuntimeError, match=rf"check the connection.*https://example.org/tiny into {tmp_path}"):
            fetch_model(replace(model, source=gone, extras=()), tmp_path, lambda done, total: None, [gone])
        assert not list(tmp_path.iterdir())

    def test_no_place_to_write(self, server, model, tmp_path):
        (tmp_path / "sams").write_text("a file where the folder should be")
        with pytest.raises(RuntimeError, match="cannot be written .*make room or allow it"):
            fetch(replace(model, extras=()), tmp_path / "sams" / "tiny", server)

    def test_no_room(self, server, model, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(RuntimeError, match="do not fit, 1 MB are free"):
            fetch(model, tmp_path, server)
        assert not list(tmp_path.iterdir())


class TestOrigins:
    @pytest.mark.parametrize(
        "address",
        [
            "http://huggingface.co/a",
            "https://huggingface.co.example.org/a",
            "https://huggingface.co@example.org/a",
            "https://huggingface.co:8443/a",
            "https://example.org/huggingface.co",
            "file:///etc/passwd",
        ],
    )
    def test_others_are_refused(self, address):
        from mask_guided_video.nodes.model_files.downloads import check_origin
        from mask_guided_video.nodes.model_files.known_models import ORIGINS

        with pytest.raises(ConnectionError, match="is not among the addresses"):
            check_origin(address, ORIGINS)

    def test_known_models_lie_inside(self):
        from mask_guided_video.nodes.model_files.downloads import check_origin
        from mask_guided_video.nodes.model_files.known_models import KNOWN_MODELS, ORIGINS

        for model in KNOWN_MODELS:
            assert model.page.startswith("https://") and model.files
            if model.source:
                check_origin(f"{model.source}/{model.files[0]}", ORIGINS)
        check_origin("https://cas-bridge.xethub.hf.co/a", ORIGINS)
        assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)

    def test_redirect_out_of_the_table(self, server, model, tmp_path):
        server.moved_to = "http://localhost:9"
        moved = replace(model, source=f"{server.url}/moved", extras=())
        with pytest.raises(RuntimeError, match="http://localhost:9 is not among the addresses"):
            fetch(moved, tmp_path, server)
        assert not list(tmp_path.iterdir())
