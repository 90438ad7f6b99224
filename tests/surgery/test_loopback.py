"""The server of `python -m surgery demo` gives out files of its folder, and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.__main__ import main
from surgery.base.loopback import HEADERS, Server, Site
from surgery.commands.demo import site_of

VERSION = "4.3.1"
META = f'<meta name="library" content="https://cdn.example/@huggingface/transformers@{VERSION}">'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the server must and must not give out."""
    made = tmp_path / "site"
    (made / "onnx").mkdir(parents=True)
    (made / "index.html").write_text("a page")
    (made / "onnx" / "a.onnx_data").write_bytes(bytes(range(256)) * 5000)
    (made / "a b.mjs").write_text("export {}")
    (made / ".hidden").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (made / "out").symlink_to(tmp_path / "secret")
    (made / "up").symlink_to(tmp_path)
    (made / "in").symlink_to(made / "index.html")
    (made / "circle").symlink_to(made / "circle")
    os.mkfifo(made / "fifo")
    (tmp_path / "npm" / "dist").mkdir(parents=True)
    (tmp_path / "npm" / "dist" / "x.wasm").write_bytes(b"wasm")
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    site = Site(folder, {"/npm/x@1/": folder.parent / "npm"}, {"/replaced.json": b"{}"})
    with Server(site) as made:
        threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
        yield made
        made.shutdown()


def get(
    server: Server, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of an answer to a request whose path is sent as it is."""
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    link.putrequest(method, path, skip_host=True)
    if host != "":
        link.putheader("Host", host or f"127.0.0.1:{server.port}")
    link.endheaders()
    answer = link.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    link.close()
    return found


def test_files_and_headers(server: Server, folder: Path) -> None:
    data = (folder / "onnx" / "a.onnx_data").read_bytes()
    for path, kind, body in (
        ("/", "text/html; charset=utf-8", b"a page"),
        ("/?device=wasm", "text/html; charset=utf-8", b"a page"),
        ("/in", "application/octet-stream", b"a page"),
        ("/a%20b.mjs", "text/javascript; charset=utf-8", b"export {}"),
        ("/onnx/a.onnx_data", "application/octet-stream", data),
        ("/npm/x@1/dist/x.wasm", "application/wasm", b"wasm"),
        ("/replaced.json", "application/json", b"{}"),
    ):
        status, headers, found = get(server, path)
        assert (status, headers["Content-Type"], found) == (200, kind, body), path
        assert headers.items() >= HEADERS.items()
        status, headers, found = get(server, path, "HEAD")
        assert (status, int(headers["Content-Length"]), found) == (200, len(body), b""), path


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/onnx", "/onnx/", "/onnx/a.onnx_data/", "/.hidden", "/fifo", "/circle"),
        *("/out", "/up/secret", "/../secret", "/%2e%2e/secret", "/onnx/..%2f..%2fsecret"),
        *("/..%5csecret", "//secret", "/%00", "/C:/secret", "secret", "http://x/", "*"),
        *("/npm/x@1/", "/npm/x@1/../secret", "/npm/x@2/dist/x.wasm", "/" + "a" * 5000),
    ],
)
def test_nothing_else(server: Server, path: str) -> None:
    status, headers, body = get(server, path)
    assert (status, body) == (404, b"no such file\n")
    assert headers.items() >= HEADERS.items()


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:{}", "127.0.0.1", "[::1]:{}"])
def test_another_name_is_refused(server: Server, host: str) -> None:
    """As a page sends it whose own name was made to mean this machine."""
    status, _, body = get(server, "/", host=host.format(server.port))
    assert (status, body) == (421, b"this server has another name\n")
    assert get(server, "/", host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    assert get(server, "/", method)[0] == 501


def test_only_this_machine_can_ask(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_browser_that_leaves_is_no_error(
    server: Server, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "large").write_bytes(bytes(30_000_000))
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        link.recv(100)
    assert get(server, "/")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """As much of a package for transformers.js as the command looks at."""
    made = tmp_path / "package"
    (made / "onnx").mkdir(parents=True)
    (made / "config.json").write_text('{"transformers.js_config": {}}')
    (made / "index.html").write_text(f"<head>{META}</head>")
    (made / "onnx" / "a.onnx").write_bytes(b"a")
    return made


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """As much of the npm packages."""
    made = tmp_path / "npm"
    for name, version in (("@huggingface/transformers", VERSION), ("onnxruntime-web", "1.31.0-x")):
        (made / "node_modules" / name).mkdir(parents=True)
        (made / "node_modules" / name / "package.json").write_text(json.dumps({"version": version}))
    return made


def test_the_page_loads_the_local_library(package: Path, library: Path) -> None:
    site = site_of(package, str(library))
    assert b'content="/npm/@huggingface/transformers@4.3.1">' in site.pages["/index.html"]
    assert site.find("/npm/onnxruntime-web@1.31.0-x/package.json") is not None
    assert site_of(package, None).pages == {}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command says, which ends with exit code 2."""
    assert main(["demo", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_refusals(package: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for port in (0, -1, 65536):
        assert "must be from 1 to 65535" in refused(capsys, package, "--port", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in refused(capsys, package, "--port", port)
    assert "npm install" in refused(capsys, package, "--library", package)
    other = library / "node_modules" / "@huggingface" / "transformers" / "package.json"
    other.write_text('{"version": "4.2.0"}')
    assert "has @huggingface/transformers 4.2.0" in refused(capsys, package, "--library", library)
    (package / "index.html").write_text("no library")
    assert "does not say which library" in refused(capsys, package, "--library", library)
    (package / "index.html").unlink()
    assert "Build the package again" in refused(capsys, package)
    (package / "index.html").symlink_to("/etc/hostname")
    assert "Links out of it are not followed" in refused(capsys, package)
    (package / "config.json").write_text("{}")
    assert "surgery --for transformers.js" in refused(capsys, package)
    (package / "genai_config.json").write_text("{}")
    assert "which python -m surgery chat asks" in refused(capsys, package)
    assert "no package for transformers.js" in refused(capsys, package / "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent otherwise there")
def test_it_runs_until_interrupted(package: Path) -> None:
    words = [sys.executable, "-m", "surgery", "demo", str(package)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        link = http.client.HTTPConnection(url.removeprefix("http://").strip("/"), timeout=10)
        link.request("GET", "/config.json")
        assert link.getresponse().read() == b'{"transformers.js_config": {}}'
        link.close()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=20)
    assert (process.returncode, rest, said) == (130, "", "interrupted\n")
