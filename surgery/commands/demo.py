"""Show the page of a package for transformers.js, which asks about pictures in a browser.

The command serves the package's folder to this machine alone, prints the address to open, and runs
until Ctrl-C. python -m surgery --for transformers.js makes such a package.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from surgery.base.errors import PackageError, UserError
from surgery.base.files import read_json, read_text
from surgery.base.loopback import Server, Site

PAGE = "index.html"
LIBRARY = re.compile(
    r'(<meta name="library" content=")https://[^"]*/(@huggingface/transformers)@([^"/]+)(">)'
)
"""Where the page says what it loads."""
NPM = "/npm/"
PACKAGES = ("@huggingface/transformers", "onnxruntime-web")
"""The npm packages whose files a browser loads."""


def configure(p: argparse.ArgumentParser) -> None:
    """Define the package and how to serve it."""
    p.add_argument("package", metavar="DIR", help="package directory")
    p.add_argument(
        "--port", type=int, metavar="N", help="port to listen on (default: one that is free)"
    )
    p.add_argument(
        "--library",
        metavar="DIR",
        help="folder in which npm installed @huggingface/transformers, to need no network "
        "(default: the page loads the library from cdn.jsdelivr.net)",
    )


def main(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: must be from 1 to 65535.")
    site = site_of(Path(args.package), args.library)
    with Server(site, args.port or 0) as server:
        print(f"open {server.url} in a browser; Ctrl-C ends the command", flush=True)
        server.serve_forever()
    return 0


def site_of(folder: Path, library: str | None) -> Site:
    """What to serve for a package.

    Raises:
        UserError: the folder holds no package for transformers.js, or the library is not there.
    """
    check(folder)
    site = Site(folder)
    if library is None:
        return site
    page = read_text(folder / PAGE, PackageError)
    found = LIBRARY.search(page)
    if found is None:
        raise PackageError(f"{folder}: {PAGE} does not say which library it loads.")
    page = page.replace(found[0], f"{found[1]}{NPM}{found[2]}@{found[3]}{found[4]}")
    return Site(folder, mounts(Path(library), found[3]), {f"/{PAGE}": page.encode()})


def check(folder: Path) -> None:
    """Refuse what is no whole package for transformers.js.

    Raises:
        PackageError: the message says what it is instead, or what is missing.
    """
    from surgery.verify.browser import is_for_browser

    if (folder / "genai_config.json").exists():
        raise PackageError(
            f"{folder}: a package for onnxruntime-genai, which python -m surgery chat asks. "
            f"python -m surgery --for transformers.js makes one for browsers."
        )
    if not is_for_browser(folder):
        raise PackageError(
            f"{folder}: no package for transformers.js. python -m surgery --for transformers.js "
            f"makes one."
        )
    if not (folder / PAGE).exists():
        raise PackageError(f"{folder}: {PAGE} is missing. Build the package again.")
    site = Site(folder)
    for file in (folder / PAGE, folder / "config.json", *sorted((folder / "onnx").glob("*"))):
        if site.find(f"/{file.relative_to(folder).as_posix()}") is None:
            raise PackageError(
                f"{file}: no regular file of the folder itself. Links out of it are not followed; "
                f"hf download --local-dir makes a folder without them."
            )


def mounts(library: Path, version: str) -> dict[str, Path]:
    """The folders of the npm packages by the paths that the page asks for.

    Args:
        library: the folder that holds `node_modules`.
        version: of @huggingface/transformers, which the page names.

    Raises:
        UserError: a package is missing, or has another version.
    """
    served = {}
    for name in PACKAGES:
        place = library / "node_modules" / name
        missing = (
            f"--library {library}: holds no node_modules/{name}. Install it: "
            f"npm install --ignore-scripts --prefix {library} {PACKAGES[0]}@{version}"
        )
        has = str(read_json(place / "package.json", UserError, missing).get("version"))
        if name == PACKAGES[0] and has != version:
            raise UserError(
                f"--library {library}: has {name} {has}, and the page is for {version}."
            )
        served[f"{NPM}{name}@{has}/"] = place
    return served
