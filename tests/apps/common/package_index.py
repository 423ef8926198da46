"""A package index on 127.0.0.1 in the layout of PEP 503, with wheels made by hand."""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Quiet(SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]


class Index:
    """Serves a folder; `url` is what PIP_INDEX_URL takes, `requests` what was asked."""

    def __init__(self, folder: Path, server: ThreadingHTTPServer) -> None:
        self.folder = folder
        self.server = server
        self.requests: list[str] = []
        server.requests = self.requests  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{server.server_port}/simple/"

    def offer(self, name: str, version: str, content: bytes) -> None:
        """Puts a wheel on the index, with a link that has no hash."""
        file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        page = self.folder / "simple" / name
        page.mkdir(parents=True, exist_ok=True)
        (page / file).write_bytes(content)
        (page / "index.html").write_text(f'<!DOCTYPE html><a href="{file}">{file}</a>')


@contextmanager
def serve(folder: Path) -> Iterator[Index]:
    handler = partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield Index(folder, server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wheel_bytes(name: str, version: str, members: Mapping[str, bytes]) -> bytes:
    """A wheel that pip accepts, holding `members`."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    form = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        **members,
        f"{info}/METADATA": about,
        f"{info}/WHEEL": form,
        f"{info}/RECORD": "",
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return content.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
