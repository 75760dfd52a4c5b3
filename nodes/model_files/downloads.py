"""Fetching known models, only when a loader's widget says so: from known addresses, whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .known_models import ORIGINS, KnownModel

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
TIMEOUT_SECONDS = 20
# Left on the disk after a download.
SPARE_BYTES = 256 * 1024 * 1024

Progress = Callable[[int, int], None]


def fetch_model(model: KnownModel, folder: Path, progress: Progress, origins: Sequence[str] = ORIGINS) -> Path:
    """Fetch what is missing of a known model; what is there is never touched.

    Args:
        model: with a source.
        folder: where its files belong.
        progress: called with (bytes done, bytes in all) of each file; it may raise to cancel. A file that was begun is
            kept under a temporary name and gone on with the next time.
        origins: which addresses may be used.

    Returns:
        Path of the file or folder.

    Raises:
        RuntimeError: when a file cannot be had or written, naming the file, the page and the folder.
    """
    for name in model.extras:
        _fetch(model, name, folder, progress, origins, may_lack=True)
    for name in model.files:
        _fetch(model, name, folder, progress, origins, may_lack=False)
    return folder if model.is_folder else folder / model.files[-1]


def _fetch(
    model: KnownModel, name: str, folder: Path, progress: Progress, origins: Sequence[str], may_lack: bool
) -> None:
    if (folder / name).exists():
        return
    by_hand = f"fetch it by hand from {model.page} into {folder}"
    try:
        Download(f"{model.source}/{name}", folder / name, model.sha256, tuple(origins)).run(progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404 and may_lack:
            logger.info("%s has no %s, which not every version needs", model.page, name)
            return
        raise RuntimeError(f"{name} cannot be had ({error.code} {error.reason}); {by_hand}.") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise RuntimeError(
            f"{name} cannot be fetched ({reason}); check the connection and run again, which goes on where it ended, "
            f"or {by_hand}."
        ) from error
    except OSError as error:
        raise RuntimeError(f"{name} cannot be written ({error}); make room or allow it, or {by_hand}.") from error


@dataclass(frozen=True)
class Download:
    """One file on its way.

    Attributes:
        address: where it is.
        target: where it belongs; never overwritten.
        sha256: how its digest begins, or nothing.
        origins: which addresses may be used, as patterns of scheme, host and port.
    """

    address: str
    target: Path
    sha256: str
    origins: tuple[str, ...]

    def run(self, progress: Progress) -> None:
        """Fetch under a temporary name, check, and give it its own."""
        check_origin(self.address, self.origins)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        begun = self._begun()
        if begun is not None and begun.stat().st_size < _size_in_name(begun):
            answer = self._ask(begun)
        elif begun is not None:
            return self._finish(begun)
        else:
            answer = self._ask()
        with closing(answer):
            begun, done, size = self._place(answer, begun)
            logger.info("Fetching %s (%s) to %s", self.address, _readable(size), self.target)
            with open(begun, "r+b" if done else "wb") as file:
                file.seek(done)
                progress(done, size or 1)
                while chunk := answer.read(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    progress(min(done, size or 1), size or 1)
        if size and done != size:
            raise ConnectionError(f"{done} of {size} bytes came")
        self._finish(begun)

    def _begun(self) -> Path | None:
        """The temporary file of an earlier try, whose name says how long the whole is."""
        pattern = re.compile(re.escape(self.target.name) + r"\.\d+\.part")
        found = [path for path in self.target.parent.iterdir() if pattern.fullmatch(path.name)]
        # Without a length (0) nobody knows whether it is whole.
        usable = [path for path in found if 0 < _size_in_name(path) >= path.stat().st_size][:1]
        for path in found:
            if path not in usable:
                path.unlink()
        return usable[0] if usable else None

    def _ask(self, begun: Path | None = None) -> Any:
        """The server's answer: the rest of what was begun, or the whole."""
        headers = {"User-Agent": "mask-guided-video", "Accept-Encoding": "identity"}
        if begun is not None:
            headers["Range"] = f"bytes={begun.stat().st_size}-"
        request = urllib.request.Request(self.address, headers=headers)
        opener = urllib.request.build_opener(_CheckedRedirects(self.origins))
        try:
            return opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if begun is None or error.code != 416:
                raise
            error.close()
            return self._ask()

    def _place(self, answer: Any, begun: Path | None) -> tuple[Path, int, int]:
        """Temporary file to write, bytes it has, and bytes of the whole (0: unknown)."""
        length = int(answer.headers.get("Content-Length") or 0)
        if begun is not None and answer.status == 206:
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            done = begun.stat().st_size
            if sent and (int(sent[1]), int(sent[2])) == (done, _size_in_name(begun)):
                return begun, done, int(sent[2])
        if begun is not None:
            # Another file than the one that was begun: from the start.
            begun.unlink()
        if answer.status == 206:
            raise ConnectionError("the file changed since it was begun")
        free = shutil.disk_usage(self.target.parent).free
        if length + SPARE_BYTES > free:
            raise OSError(f"{_readable(length)} do not fit, {_readable(free)} are free in {self.target.parent}")
        return self.target.with_name(f"{self.target.name}.{length}.part"), 0, length

    def _finish(self, begun: Path) -> None:
        if self.sha256:
            digest = hashlib.sha256()
            with open(begun, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
            if not digest.hexdigest().startswith(self.sha256):
                begun.unlink()
                raise ConnectionError(f"what came is not the file: its digest does not begin with {self.sha256}")
        if self.target.exists():
            begun.unlink()
            return
        begun.rename(self.target)
        logger.info("Fetched %s", self.target)


def check_origin(address: str, origins: Sequence[str]) -> None:
    """Refuse addresses that are not in the table.

    Raises:
        ConnectionError: naming the address's origin.
    """
    parts = urlsplit(address)
    origin = f"{parts.scheme}://{(parts.hostname or '').lower()}" + (f":{parts.port}" if parts.port else "")
    if "@" in parts.netloc or not any(fnmatchcase(origin, pattern) for pattern in origins):
        raise ConnectionError(f"{origin} is not among the addresses that models are fetched from")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, origins: Sequence[str]) -> None:
        self.origins = origins

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_origin(newurl, self.origins)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _size_in_name(begun: Path) -> int:
    return int(begun.name.rsplit(".", 2)[1])


def _readable(size: int) -> str:
    return f"{size / 1024**2:.0f} MB" if size else "unknown size"
