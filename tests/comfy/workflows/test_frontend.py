"""Every bundled workflow in ComfyUI's own frontend: it opens with its values, and *Run* gives the result of the API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bundled_graphs import read, skip_unless_known
from frontend import frontend, open_workflow, press_run, prompt_to_send, use_nodes_2, widget_values
from packs import ANIMATEDIFF, pack_folder
from saved_graphs import inputs_of, is_widget, later_widgets, prompt_of, saved_values, subgraphs_of, with_widget

pytestmark = [pytest.mark.comfy, pytest.mark.browser]

ROOT = Path(__file__).resolve().parent.parent.parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
TOYBOX = [name for name in NAMES if name.endswith("_toybox")]
MODES = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
BOTH = ("minimax_h3_two_persons", "guided_path_toybox")
# Enough to tell films apart.
STEPS = 3


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


@pytest.fixture(scope="module")
def page(server, chromium_path):
    with frontend(server.url, chromium_path) as opened:
        yield opened


def test_no_link_of_ours_is_an_editor(page, info):
    """The frontend has editors for more types than core's Python says."""
    editors = set(page.evaluate("() => Object.keys(window.app.widgets)"))
    assert {"INT", "BOUNDING_BOX"} <= editors
    for name in (name for name in info if name.startswith("MGV_")):
        wanted = {key for key, value in inputs_of(info[name]).items() if is_widget(value)}
        made = page.evaluate(
            "name => window.LiteGraph.createNode(name).inputs.filter(entry => entry.widget).map(entry => entry.name)",
            name,
        )
        assert set(made) == wanted, name


@pytest.mark.parametrize(
    ("name", "nodes_2"),
    [(name, False) for name in NAMES]
    # By default two of them in Nodes 2.0 too: one with subgraphs, one without.
    + [pytest.param(name, True, marks=() if name in BOTH else pytest.mark.slow) for name in NAMES],
)
def test_it_opens_with_its_values(page, info, comfy_folder, name, nodes_2):
    if name.startswith("animatediff"):
        pack_folder(comfy_folder, ANIMATEDIFF)
    skip_unless_known(name, info)
    use_nodes_2(page, nodes_2)
    workflow = read(name)
    opened = {node["id"]: node for node in open_workflow(page, workflow)}
    shown = widget_values(page)
    assert {number: node["type"] for number, node in opened.items()} == {
        node["id"]: node["type"] for node in workflow["nodes"]
    }
    for node in workflow["nodes"]:
        saved, again = node.get("widgets_values") or [], opened[node["id"]].get("widgets_values") or []
        if node["type"] in subgraphs_of(workflow):
            # Frontends differ in how they save what a subgraph shows, and under which names they show it.
            assert set(saved) <= set(shown[str(node["id"])].values()), node["title"]
            continue
        assert again == saved if node["type"].startswith("MGV_") else again[: len(saved)] == saved, node["type"]
        if node["type"] in info:
            values = saved_values(node, info[node["type"]])
            values |= later_widgets(inputs_of(info[node["type"]]), values)
            found = {key: shown[str(node["id"])][key] for key in values}
            assert found == values, node["type"]
    assert prompt_to_send(page) == {number: node["inputs"] for number, node in prompt_of(workflow, info).items()}
    if nodes_2:
        page.wait_for_function("count => document.querySelectorAll('[data-node-id]').length === count", arg=len(opened))


def results(host, run):
    """Pixels and texts of all nodes that show something."""
    assert run.succeeded, run.error
    return {
        number: {kind: [comparable(host, entry) for entry in entries] for kind, entries in output.items()}
        for number, output in run.outputs.items()
    }


def comparable(host, entry):
    """The pixels of a picture, the size of a film, a text without the time that it took.

    Encoders give other bytes each time; the templates show the frames of their films as pictures, too.
    """
    import av

    if isinstance(entry, str):
        return re.sub(r"time: .* s", "", entry)
    if not isinstance(entry, dict):
        return entry
    with av.open(str(host.path_of(entry))) as file:
        frames = [frame.to_ndarray() for frame in file.decode(video=0)]
    return [frame.shape for frame in frames] if entry["filename"].endswith(".mp4") else frames[0].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYBOX)
def test_run_gives_the_result_of_the_api(server, page, info, toybox_folder, name):
    short = with_widget(read(name), info, "steps", STEPS)
    use_nodes_2(page, False)
    open_workflow(page, short)
    by_browser = server.wait(press_run(page))
    found = results(server, by_browser)
    assert any(isinstance(entry, bytes) for output in found.values() for entry in output.get("images", []))
    # The same again, with nothing from the cache.
    prompt = prompt_of(short, info)
    server.empty_cache()
    by_api = server.run(prompt)
    assert by_api.cached == set() and results(server, by_api) == found
    # Core's cache knows a node again by all that it is made of, and then shows what its outputs showed.
    use_nodes_2(page, True)
    open_workflow(page, short)
    again = server.wait(press_run(page))
    assert again.cached == set(prompt)
    assert results(server, again).items() <= found.items()
