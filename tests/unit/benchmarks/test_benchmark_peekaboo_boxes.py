"""The runner of box lists against a server that answers as ComfyUI does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.recipes.films.files import read_film_bytes, write_film

WORKFLOW = {
    "1": {"class_type": "PrimitiveString", "inputs": {"value": ""}, "_meta": {"title": "Prompt"}},
    "2": {"class_type": "LoadVideo", "inputs": {"file": ""}, "_meta": {"title": "Masks"}},
    "3": {"class_type": "RandomNoise", "inputs": {"noise_seed": 0}},
    "4": {"class_type": "Guide", "inputs": {"strength": 0.7, "phrases": "", "text": ["1", 0]}},
    "9": {"class_type": "SaveVideo", "inputs": {"filename_prefix": "video/x"}},
}
RECORDS = [
    {"id": number, "caption": f"a ball {number}", "subject": "ball", "bboxes": [[0.25, 0.25, 0.75, 0.75]] * 12}
    for number in (7, 8)
]


class Answers(BaseHTTPRequestHandler):
    """The routes that the runner asks; the server object keeps what was sent."""

    def log_message(self, *_):
        pass

    def answer(self, value, code=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        route = urlparse(self.path)
        if route.path == "/system_stats":
            self.answer({"system": {}})
        elif route.path == "/queue":
            self.answer({"queue_running": [], "queue_pending": []})
        elif route.path == "/view":
            names = parse_qs(route.query)
            self.answer(self.server.films[names["filename"][0]])
        else:
            number = route.path.rpartition("/")[2]
            self.answer({number: self.server.history[number]} if number in self.server.history else {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            head, content = body.split(b"application/octet-stream\r\n\r\n")
            name = head.split(b'filename="')[1].split(b'"')[0].decode()
            self.server.uploads[f"peekaboo_boxes/{name}"] = content.rpartition(b"\r\n--")[0]
            return self.answer({"name": name, "subfolder": "peekaboo_boxes", "type": "input"})
        graph = json.loads(body)["prompt"]
        number = str(len(self.server.graphs))
        self.server.graphs.append(graph)
        prompt = graph["1"]["inputs"]["value"]
        if prompt in self.server.refused:
            error = {"message": "Value not in list", "details": "file: 'x'"}
            return self.answer({"node_errors": {"2": {"class_type": "LoadVideo", "errors": [error]}}}, 400)
        if prompt in self.server.failing:
            failed = {"node_id": "4", "node_type": "Guide", "exception_message": "the mask\nis empty"}
            self.server.history[number] = {"status": {"messages": [["execution_error", failed]]}, "outputs": {}}
        else:
            self.server.films[f"{number}.mp4"] = self.server.film
            files = [{"filename": f"{number}.mp4", "subfolder": "", "type": "output"}]
            done = [["execution_start", {}], ["execution_success", {}]]
            self.server.history[number] = {"status": {"messages": done}, "outputs": {"9": {"images": files}}}
        return self.answer({"prompt_id": number})


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("av")
    write_film(tmp_path / "made.mp4", torch.full((12, 32, 32, 3), 0.5))
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.graphs, found.history, found.films, found.uploads = [], {}, {}, {}
    found.refused, found.failing, found.film = set(), set(), (tmp_path / "made.mp4").read_bytes()
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def benchmark(open_benchmark, monkeypatch):
    """With a detector that sees the left half of the box in all frames but the last one."""
    script = open_benchmark("peekaboo_boxes")

    class Detector:
        def detect(self, film, phrases, *thresholds, every=1, progress=None):
            return [[Box(8, 8, 8, 16, phrases[0])]] * (len(film) - 1) + [[]]

    loaders = script.module("recipes.model_sets")
    monkeypatch.setattr(loaders, "load_finders", lambda *_: (Detector(), None))
    return script


@pytest.fixture
def start(benchmark, server, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(RECORDS))
    (tmp_path / "api.json").write_text(json.dumps(WORKFLOW))

    def run(*more, first="list.json", guide=True):
        words = [tmp_path / first, "--workflow", tmp_path / "api.json", "--out", tmp_path / "out"]
        words += ["--server", f"http://127.0.0.1:{server.server_port}", "--size", "32x32", "--seed", 40, "--threads", 1]
        words += ["--prompt-node", "Prompt", "--mask-node", "Masks", "--seed-node", "RandomNoise"]
        words += ["--guide-node", "4"] if guide else []
        code = benchmark.main([str(word) for word in (*words, *more)])
        path = tmp_path / "out" / "peekaboo.json"
        return code, json.loads(path.read_text()) if path.is_file() else None

    return run


def test_both_variants_of_every_record(start, server, capsys, tmp_path):
    code, report = start("--subject-node", "4")
    assert code == 0 and not report["failed"]
    sent = [(graph["1"]["inputs"]["value"], graph["3"]["inputs"]["noise_seed"], graph["4"]["inputs"]["strength"])
            for graph in server.graphs]  # fmt: skip
    assert sent == [("a ball 7", 40, 0.7), ("a ball 7", 40, 0), ("a ball 8", 41, 0.7), ("a ball 8", 41, 0)]
    assert {graph["4"]["inputs"]["phrases"] for graph in server.graphs} == {"ball"}
    assert {graph["2"]["inputs"]["file"] for graph in server.graphs} == {
        "peekaboo_boxes/7.mp4",
        "peekaboo_boxes/8.mp4",
    }
    assert len({graph["9"]["inputs"]["filename_prefix"] for graph in server.graphs}) == 4
    # 8 x 16 of 16 x 16 pixels in 11 of 12 frames.
    for form in ("published", "corrected"):
        found = report["summary"]["guided"][form]
        assert found["miou"] == pytest.approx(11 * 128 / (12 * 256), abs=1e-5) and found["coverage"] == 1
    assert report["summary"]["guided"]["corrected"]["ap50"] == 1
    assert report["summary"]["guided"]["published"]["ap50"] == 0, "its 1e-5 makes an IoU of exactly one half a miss"
    words = capsys.readouterr().out
    assert "7 guided: IoU 0.458, detected in 11 of 12 frames" in words and "unguided, corrected" in words
    assert (tmp_path / "out" / "videos" / "unguided" / "8.mp4").read_bytes() == server.film


def test_masks_are_black_and_white_without_loss(start, server, tmp_path):
    start()
    (tmp_path / "sent.mp4").write_bytes(server.uploads["peekaboo_boxes/7.mp4"])
    masks = read_film_bytes(tmp_path / "sent.mp4")[0]
    assert masks.shape == (12, 32, 32, 3) and set(masks.unique().tolist()) == {0, 255}
    assert int((masks[..., 0] == 255).sum()) == 12 * 256 and bool((masks[:, 8:24, 8:24] == 255).all())


def test_a_second_run_makes_only_what_is_missing(start, server, tmp_path):
    assert start("--limit", 1)[0] == 0 and len(server.graphs) == 2
    (tmp_path / "out" / "videos" / "unguided" / "7.mp4").unlink()
    code, report = start()
    assert code == 0 and len(server.graphs) == 2 + 3
    assert sorted((entry["id"], entry["variant"]) for entry in report["records"]) == [
        ("7", "guided"), ("7", "unguided"), ("8", "guided"), ("8", "unguided"),
    ]  # fmt: skip
    # Another judge measures again, makes nothing and needs no server.
    code, judged = start("--box-threshold", 0.5, "--server", "http://127.0.0.1:9")
    assert code == 0 and len(server.graphs) == 5 and judged["settings"]["judged"]["box_threshold"] == 0.5
    assert len(judged["records"]) == 4


def test_other_settings_do_not_mix(start, capsys):
    start()
    code, report = start("--seed", 1)
    assert code == 2 and "were made with another seed" in capsys.readouterr().err
    assert report["settings"]["made"]["seed"] == 40


def test_a_subject_that_no_detector_takes_is_refused_before_a_video_is_made(start, server, tmp_path, capsys):
    (tmp_path / "two.json").write_text(json.dumps([RECORDS[0], {**RECORDS[1], "subject": "ball, star"}]))
    code, report = start(first="two.json")
    assert code == 2 and report is None and not server.graphs and "ball, star" in capsys.readouterr().err


def test_videos_without_a_record_are_not_trusted(start, tmp_path, capsys):
    (tmp_path / "out" / "videos" / "guided").mkdir(parents=True)
    code, report = start()
    assert code == 2 and report is None and "says how they were made" in capsys.readouterr().err


def test_a_video_that_fails_stops_no_other(start, server, capsys):
    server.failing, server.refused = {"a ball 7"}, {"a ball 8"}
    code, report = start(guide=False)
    assert code == 1 and report["records"] == [] and [entry["id"] for entry in report["failed"]] == ["7", "8"]
    assert report["failed"][0]["error"] == "node 4 (Guide) fails: the mask is empty"
    assert "node 2 (LoadVideo): Value not in list, file: 'x'" in report["failed"][1]["error"]
    assert "2 videos failed" in capsys.readouterr().out
    server.failing, server.refused = set(), set()
    code, report = start(guide=False)
    assert code == 0 and len(report["records"]) == 2 and report["failed"] == []


def test_masks_for_another_length(start, server, tmp_path, capsys):
    code, report = start("--frames", 20)
    assert code == 0 and report["records"][0]["masks"] == 20 and report["records"][0]["video"] == [12, 32, 32]
    assert report["records"][0]["frames"] == 12
    assert "4 videos have another number of frames than their masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-node", "Nowhere"], "no node 'Nowhere'; there are 1 'Prompt', 2 'Masks', 3 'RandomNoise'"),
        (["--prompt-node", "4.text"], "comes from node 1 (Prompt); name that node instead"),
        (["--mask-node", "3"], "has the inputs noise_seed, and none of file, video"),
        (["--guide-node", "4.phrases"], "input 'phrases' of the guide node 4 is ''"),
        (["--server", "127.0.0.1:8188"], "give an address such as http://"),
        (["--server", "http://127.0.0.1:9"], "no ComfyUI answers at http://127.0.0.1:9"),
        (["--frames", "0"], "frames is 0; give at least 1"),
        (["--box-threshold", "1.5"], "box_threshold is 1.5; give a value from 0 to 1"),
        (["--workflow", "saved.json"], "saved.json' is a workflow as it is saved; export it for the API"),
        (["--workflow", "list.json"], "is no workflow for the API"),
        (["--output-node", "1"], "the workflow makes no video (it makes nothing)"),
    ],
)
def test_wrong_input_is_one_sentence(start, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved.json").write_text('{"nodes": []}')
    code, _ = start(*words)
    captured = capsys.readouterr().err
    assert code == 2 and message in captured and captured.count("\n") == 1


def test_a_server_that_forgets_a_graph(benchmark, server, monkeypatch):
    from shared import comfyui_server

    monkeypatch.setattr(comfyui_server, "LOOK_SECONDS", 0.0)
    client = comfyui_server.ComfyUI(f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(comfyui_server.RunFailed, match="not done after 0 seconds"):
        client.run(WORKFLOW, 0)
    server.history = type("Forgetful", (dict,), {"__setitem__": lambda *_: None})()
    with pytest.raises(comfyui_server.RunFailed, match="dropped the workflow from its queue"):
        client.run(WORKFLOW, 60)


def test_several_nodes_of_a_title_and_several_videos(benchmark):
    from shared.api_workflows import film_entry, find_input, find_node

    twice = {**WORKFLOW, "5": WORKFLOW["1"]}
    with pytest.raises(ValueError, match="nodes 1, 5 have the title 'Prompt'"):
        find_node(twice, "Prompt")
    assert find_input(twice, "5", "prompt") == ("5", "value")
    assert find_input(WORKFLOW, "Masks.file", "masks") == ("2", "file")
    outputs = {"8": {"gifs": [{"filename": "a.webm"}]}, "9": {"images": [{"filename": "b.mp4"}, {"filename": "c.png"}]}}
    with pytest.raises(ValueError, match="several videos .a.webm of node 8, b.mp4 of node 9."):
        film_entry(outputs, (".mp4", ".webm"))
    assert film_entry(outputs, (".mp4", ".webm"), "9") == {"filename": "b.mp4"}


def test_sizes(benchmark):
    import argparse

    assert benchmark.picture_size("576x320") == (576, 320)
    for text in ("576", "575x320", "axb", "0x2"):
        with pytest.raises(argparse.ArgumentTypeError, match="even width and height"):
            benchmark.picture_size(text)
