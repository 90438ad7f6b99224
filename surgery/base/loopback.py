"""A web server for one user on the same machine: the files of a folder, and nothing else.

It listens on 127.0.0.1 alone. Other programs of the machine can reach it there, and so can pages of
other sites that a browser on it shows. Hence:

- A request must name this server as its host. A site whose name is made to mean 127.0.0.1 later
  (DNS rebinding) sends its own name.
- No header lets pages of other origins read an answer, and `Cross-Origin-Resource-Policy` keeps
  them from embedding one.
- Only regular files below the folder are given out, by GET and HEAD. Links that lead out of it,
  hidden files and listings are not.

`Cross-Origin-Opener-Policy` and `Cross-Origin-Embedder-Policy` allow a page to share memory between
threads, which WebAssembly with several threads needs.
"""

from __future__ import annotations

import errno
import mimetypes
import shutil
import socketserver
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from surgery.base.errors import UserError

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # a package may be built again, and is near
}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
"""Types that must be right, whatever the system's own table says."""
CHUNK = 1 << 20
PATIENCE = 60
"""Seconds without a byte after which a connection is closed."""
BUSY = (errno.EADDRINUSE, errno.EACCES)


@dataclass(frozen=True)
class Site:
    """What a server gives out.

    Attributes:
        folder: its files are at the root.
        mounts: further folders by the beginning of the path, which ends with a slash.
        pages: contents by path, in place of the folder's own.
    """

    folder: Path
    mounts: Mapping[str, Path] = field(default_factory=dict)
    pages: Mapping[str, bytes] = field(default_factory=dict)

    def find(self, path: str) -> Path | None:
        """The file at a path that begins with a slash, None if there is none to give out."""
        folder, rest = self.folder, path.removeprefix("/")
        for start, other in self.mounts.items():
            if path.startswith(start):
                folder, rest = other, path.removeprefix(start)
        parts = rest.split("/")
        if any(not p or p.startswith(".") or set(p) & set("\\:\0") for p in parts):
            return None
        try:
            found = folder.joinpath(*parts).resolve(strict=True)
            regular = stat.S_ISREG(found.stat().st_mode)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            return None
        return found if regular and found.is_relative_to(folder.resolve()) else None


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: Server

    def do_GET(self) -> None:
        """Send a file."""
        self.answer(body=True)

    def do_HEAD(self) -> None:
        """Send the headers of a file."""
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        """Send a file, or why not."""
        if self.headers.get_all("Host", []) not in self.server.hosts:
            self.refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name", body)
            return
        path = unquote(urlsplit(self.path).path, errors="replace")
        path = f"{path}index.html" if path.endswith("/") else path
        if path in self.server.site.pages:
            self.begin(HTTPStatus.OK, path, len(self.server.site.pages[path]))
            self.wfile.write(self.server.site.pages[path] if body else b"")
            return
        found = self.server.site.find(path) if self.path.startswith("/") else None
        try:
            file = None if found is None else found.open("rb")
        except OSError:
            file = None
        if file is None:
            self.refuse(HTTPStatus.NOT_FOUND, "no such file", body)
            return
        with file:
            self.begin(HTTPStatus.OK, path, file.seek(0, 2))
            file.seek(0)
            if body:
                shutil.copyfileobj(file, self.wfile, CHUNK)

    def begin(self, status: HTTPStatus, path: str, size: int) -> None:
        """Send the status and the headers."""
        suffix = Path(path).suffix.lower()
        kind = KINDS.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": size}).items():
            self.send_header(name, str(value))
        self.end_headers()

    def refuse(self, status: HTTPStatus, why: str, body: bool) -> None:
        """Send a line instead of a file, and end the connection."""
        self.close_connection = True
        line = f"{why}\n".encode()
        self.begin(status, "reason.txt", len(line))
        self.wfile.write(line if body else b"")

    def version_string(self) -> str:
        """The name of the server, without versions."""
        return "surgery"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing about requests."""


class Server(socketserver.ThreadingTCPServer):
    """Listens until it is closed; `serve_forever` answers.

    Args:
        site: what to give out.
        port: 1 to 65535, or 0 for one that is free.

    Raises:
        UserError: the port cannot be had.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would take the port from another

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site = site
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as e:
            if e.errno not in BUSY:
                raise
            raise UserError(f"port {port} is in use, or reserved. Choose another one.") from e
        self.port = int(self.server_address[1])
        ends = (f":{self.port}", "") if self.port == 80 else (f":{self.port}",)
        self.hosts = [[f"{name}{end}"] for name in NAMES for end in ends]

    @property
    def url(self) -> str:
        """Where the root is."""
        return f"http://{ADDRESS}:{self.port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a browser closes a connection early."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
