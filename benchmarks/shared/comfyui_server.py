"""A running ComfyUI through its HTTP interface: files up, graphs into the queue, results back.

Routes as in ComfyUI's ``server.py``: ``/upload/image``, ``/prompt``, ``/queue``, ``/history`` and ``/view``.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

# Seconds for one answer, and between two looks at the queue.
ANSWER_SECONDS = 60
LOOK_SECONDS = 0.5
# A graph that has left the queue is in the history a moment later.
LOOKS_WITHOUT_TRACE = 6


class RunFailed(Exception):
    """A graph was refused or failed; others may still work."""


class ComfyUI:
    """A server.

    Args:
        address: such as ``http://127.0.0.1:8188``.

    Raises:
        ValueError: no ComfyUI answers there.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"the server is {address!r}; give an address such as http://127.0.0.1:8188.")
        try:
            known = "system" in json.loads(self._answer("/system_stats"))
        except (RunFailed, json.JSONDecodeError, UnicodeDecodeError):
            known = False
        if not known:
            raise ValueError(f"what answers at {self.address} is no ComfyUI; give the address of one.")

    def upload(self, path: Path, folder: str) -> str:
        """Put a file into a folder of the server's input folder, over one of the same name; its name there."""
        mark = uuid.uuid4().hex
        fields = {"overwrite": "true", "type": "input", "subfolder": folder}
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        parts += [f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), path.read_bytes()]
        body = b"".join([*parts, f"\r\n--{mark}--\r\n".encode()])
        answer = json.loads(self._answer("/upload/image", body, f"multipart/form-data; boundary={mark}"))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def run(self, graph: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Queue a graph in the server's own form and wait for it.

        Args:
            graph: nodes by id.
            seconds: to wait at most, once it is queued.

        Returns:
            What its output nodes name, by node.

        Raises:
            RunFailed: the server refuses it, a node fails, it is interrupted, or it takes longer.
            ValueError: the server does not answer any more.
        """
        body = json.dumps({"prompt": graph}).encode()
        number = json.loads(self._answer("/prompt", body, "application/json"))["prompt_id"]
        until, looks = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            entry = json.loads(self._answer(f"/history/{number}")).get(number)
            if entry is not None:
                return _outputs(entry)
            looks = 0 if self._is_queued(number) else looks + 1
            if looks > LOOKS_WITHOUT_TRACE:
                raise RunFailed("the server has dropped the workflow from its queue; was the queue cleared?")
            time.sleep(LOOK_SECONDS)
        raise RunFailed(f"the workflow is not done after {seconds:g} seconds; give more with --seconds.")

    def fetch(self, entry: dict[str, str]) -> bytes:
        """A file that an output node names by ``filename``, ``subfolder`` and ``type``."""
        query = urllib.parse.urlencode({key: entry.get(key, "") for key in ("filename", "subfolder", "type")})
        return self._answer(f"/view?{query}")

    def _is_queued(self, number: str) -> bool:
        queue = json.loads(self._answer("/queue"))
        return any(entry[1] == number for entries in queue.values() for entry in entries)

    def _answer(self, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind} if body else {})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            route = path.partition("?")[0]
            raise RunFailed(f"the server refuses {route} ({error.code}): {_refusal(error.read())}") from error
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(
                f"no ComfyUI answers at {self.address} ({error}); start it, then run this again."
            ) from error


def _outputs(entry: dict[str, Any]) -> dict[str, Any]:
    messages = dict(entry["status"]["messages"])
    if "execution_error" in messages:
        failed = messages["execution_error"]
        text = " ".join(str(failed.get("exception_message", "")).split())
        raise RunFailed(f"node {failed.get('node_id')} ({failed.get('node_type')}) fails: {text}")
    if "execution_success" not in messages:
        raise RunFailed("the workflow was interrupted.")
    return entry["outputs"]


def _refusal(answer: bytes) -> str:
    """What is wrong with a graph, of each node, in the server's words."""
    try:
        values = json.loads(answer)
        errors = [
            f"node {node} ({entry['class_type']}): {error['message']}, {error['details']}"
            for node, entry in values.get("node_errors", {}).items()
            for error in entry["errors"]
        ]
        return "; ".join(errors) or values["error"]["message"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return answer.decode(errors="replace")[:500]
