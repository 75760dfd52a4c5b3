"""Peekaboo's benchmark on a real ComfyUI with the Toybox: its lists and workflow as they come with the benchmarks."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.comfy

NODES = ("--prompt-node", "Prompt", "--subject-node", "Object", "--mask-node", "Masks", "--seed-node", "Seed")


@pytest.fixture
def start(open_benchmark, root, server, toybox_folder, tmp_path):
    """Run the script on some records of the Toybox list, here with fewer boxes than the video has frames."""
    if not (root / "toybox" / "detector").is_dir():
        pytest.skip("this checkout has no Toybox detector")
    script = open_benchmark("peekaboo_boxes")
    shared = root / "benchmarks" / "shared"
    records = json.loads((shared / "peekaboo_toybox_inputs.json").read_text())[1:4]
    for record in records:
        record["bboxes"] = record["bboxes"][::3]
    workflow = json.loads((shared / "peekaboo_toybox_api.json").read_text())

    def run(count, out, **inputs):
        workflow["11"]["inputs"] |= inputs
        (tmp_path / "list.json").write_text(json.dumps(records[:count]))
        (tmp_path / "api.json").write_text(json.dumps(workflow))
        words = [tmp_path / "list.json", "--workflow", tmp_path / "api.json", "--server", server.url, "--size", "64x64"]
        words += [*NODES, "--guide-node", "Guide", "--frames", 16, "--threads", 1, "--out", tmp_path / out]
        code = script.main([str(word) for word in words])
        return code, json.loads((tmp_path / out / "peekaboo.json").read_text()), tmp_path / out

    return run


@pytest.mark.slow
def test_guided_objects_are_in_their_boxes_and_a_second_run_makes_nothing(start, capsys):
    code, report, out = start(2, "made")
    assert code == 0, report["failed"]
    assert [(entry["id"], entry["variant"]) for entry in report["records"]] == [
        ("2", "guided"), ("2", "unguided"), ("3", "guided"), ("3", "unguided"),
    ]  # fmt: skip
    assert all(entry["video"] == [16, 64, 64] and entry["frames_wanted"] == 16 for entry in report["records"])
    guided, unguided = (report["summary"][variant]["corrected"] for variant in ("guided", "unguided"))
    assert guided["clips"] == 2 and guided["coverage"] == 1
    # The boxes go where the prompt does not send the object.
    assert guided["miou"] > 0.5 > unguided["miou_all_clips"] and guided["ap50"] > 0.5
    assert guided["centroid_distance"] < unguided["centroid_distance"]
    assert "guided, corrected" in capsys.readouterr().out
    films = sorted((out / "videos").rglob("*.mp4"))
    times = [film.stat().st_mtime_ns for film in films]
    code, again, _ = start(2, "made")
    assert code == 0 and again == report and times == [film.stat().st_mtime_ns for film in films] and len(times) == 4


def test_what_the_server_refuses_is_told(start):
    code, report, _ = start(1, "refused", mode="nonsense")
    assert (
        code == 1
        and report["records"] == []
        and [entry["variant"] for entry in report["failed"]]
        == [
            "guided",
            "unguided",
        ]
    )
    assert "node 11 (MGV_DynamicMaskGuidance)" in report["failed"][0]["error"] and "nonsense" in str(report["failed"])
