"""ComfyUI's own frontend in a browser without a window: open workflows, read them back, press Run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The frontend takes half a minute on a slow machine.
START_MILLISECONDS = 180_000
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
READY = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types['MGV_Regenerate'])"
WIDGETS = """() => Object.fromEntries(window.app.graph.serialize().nodes.map(({id}) => [id, Object.fromEntries(
    (window.app.graph.getNodeById(id).widgets ?? []).map(widget => [widget.name, widget.value]))]))"""
# Preview Any sends its own text along, and Load Video its player; the server knows neither.
SHOWN = ("preview", "previewMode", "preview_mode", "preview_text", "preview_markdown", "video-preview")


@contextmanager
def frontend(url: str, chromium_path: Path) -> Iterator[Any]:
    """A page with the frontend of a server, ready to open workflows; errors of its scripts end the test."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium_path), args=OPTIONS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url, timeout=START_MILLISECONDS)
        page.wait_for_function(READY, timeout=START_MILLISECONDS)
        page.wait_for_timeout(2000)
        yield page
        browser.close()
    assert errors == []


def use_nodes_2(page: Any, enabled: bool) -> None:
    """Draw nodes as Nodes 2.0, or on the classic canvas."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", enabled)
    page.wait_for_function("on => Boolean(window.LiteGraph.vueNodesMode) === on", arg=enabled)


def open_workflow(page: Any, workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Open a workflow and return its nodes as the frontend would save them again."""
    page.evaluate("async workflow => { await window.app.loadGraphData(workflow) }", workflow)
    page.wait_for_timeout(500)
    assert page.get_by_text("Invalid workflow").count() == 0
    return page.evaluate("() => window.app.graph.serialize().nodes")


def widget_values(page: Any) -> dict[str, dict[str, Any]]:
    """Values of all widgets by name, by the number of the node."""
    return page.evaluate(WIDGETS)


def prompt_to_send(page: Any) -> dict[str, dict[str, Any]]:
    """Inputs of each node as *Run* would send them."""
    found = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    return {
        number: {key: value for key, value in node["inputs"].items() if key not in SHOWN}
        for number, node in found.items()
    }


def press_run(page: Any) -> str:
    """Queue the open workflow and return the prompt's number."""

    def is_prompt(response: Any) -> bool:
        return response.url.endswith("/prompt") and response.request.method == "POST"

    with page.expect_response(is_prompt, timeout=60_000) as waiting:
        page.evaluate("async () => { await window.app.queuePrompt(0, 1) }")
    answer = waiting.value.json()
    assert "prompt_id" in answer and not answer["node_errors"], answer
    return answer["prompt_id"]
