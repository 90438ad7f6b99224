"""The page of a package for transformers.js, in a browser: it says what PyTorch says.

The page comes from `python -m surgery demo`, the library from npm, and nothing from elsewhere.
tests/web/README.md has the commands that install what the tests need.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from surgery.base.demo import DEMO
from surgery.base.files import read_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"
DEVICES = {
    "wasm": ["--disable-gpu"],
    "webgpu": ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
}
"""What makes Chromium compute so on a machine without a GPU."""
MINUTE = 60_000
IMAGES = DEMO / "images"
STORY = "Tell me a short story."
"""The demo checkpoint's longest answer."""
STOP_AT_ONCE = """() => new MutationObserver(() => {
    const text = document.querySelector(".reply .text");
    if (text?.textContent) document.querySelector("#stop").click();
}).observe(document.querySelector("#log"), { subtree: true, childList: true })"""
"""Presses the button when the first word is there, sooner than a test could."""


@contextmanager
def served(folder: Path, modules: Path) -> Iterator[str]:
    """The address of a package's page; the command must end well."""
    words = [sys.executable, "-m", "surgery", "demo", str(folder), "--library", str(modules)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=20)[1]
    assert (process.returncode, said) == (130, "interrupted\n")


@contextmanager
def opened(device: str, address: str) -> Iterator[Any]:
    """A tab that shows the page; it must ask its own server alone, and raise nothing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    words = ["--headless", "--no-sandbox", *QUIET, *DEVICES[device]]
    said: list[str] = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=words)
        tab = browser.new_page()
        tab.on("pageerror", lambda error: said.append(str(error)))
        near = address, f"blob:{address}", "data:"
        tab.on("request", lambda r: r.url.startswith(near) or said.append(r.url))
        tab.goto(f"{address}?device={device}")
        yield tab
        browser.close()
    assert said == []


def ask(tab: Any, text: str, *pictures: Path) -> dict[str, Any]:
    """What the page answers: text, tokens and the line below them."""
    before = tab.locator("article.reply").count()
    if pictures:
        tab.set_input_files("#file", [str(picture) for picture in pictures])
        tab.locator("#chosen figure").nth(len(pictures) - 1).wait_for()
    tab.fill("#question", text)
    tab.press("#question", "Enter")
    tab.locator("#stop").wait_for(state="visible")
    tab.locator("#ask").wait_for(state="visible", timeout=5 * MINUTE)
    assert not tab.is_visible("#failure"), tab.inner_text("#failure")
    reply = tab.locator("article.reply").nth(before)
    return {
        "text": reply.locator(".text").inner_text(),
        "tokens": [int(token) for token in reply.get_attribute("data-tokens").split()],
        "note": reply.locator(".note").inner_text(),
    }


def expected(case: Any, turns: list[tuple[str, list[Path]]]) -> list[list[int]]:
    """PyTorch's answers in a conversation, each turn a text and pictures."""
    messages: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    answers = []
    for text, files in turns:
        content = [{"type": "image"} for _ in files] + [{"type": "text", "text": text}]
        pictures += [Image.open(file).convert("RGB") for file in files]
        messages.append({"role": "user", "content": content})
        prompt = case.reference.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        given = case.reference.inputs(prompt, pictures)
        answers.append(case.reference.generate(given, 200).tokens)
        messages.append({"role": "assistant", "content": case.reference.text(answers[-1])})
    return answers


UNLIKE = pytest.mark.xfail(reason="on SwiftShader, later turns have other answers", strict=True)


@pytest.mark.parametrize(
    "device", ["wasm", pytest.param("webgpu", marks=[pytest.mark.nightly, UNLIKE])]
)
def test_a_conversation_is_pytorchs(demo, modules, tmp_path, device):
    """Pictures, a second turn, two pictures at once, one to be resized, and no picture."""
    large = tmp_path / "large.png"
    Image.open(IMAGES / "shapes.png").resize((1330, 1290), Image.Resampling.NEAREST).save(large)
    turns: list[tuple[str, list[Path]]] = [
        ("where is the green rectangle?", [IMAGES / "shapes.png"]),
        ("what is at the right?", []),
        ("which image contains the circle?", [IMAGES / "number.png", IMAGES / "shape.png"]),
    ]
    alone = [[("where is the green rectangle?", [large])], [("Hello, who are you?", [])]]
    with served(demo.browser(), modules) as address, opened(device, address) as tab:
        assert tab.evaluate("crossOriginIsolated")
        found = [ask(tab, text, *files) for text, files in turns]
        assert tab.inner_text("#state").startswith({"wasm": "WebAssembly"}.get(device, "WebGPU"))
        assert [one["tokens"] for one in found] == expected(demo, turns)
        assert found[0]["text"] == "bottom left"
        for conversation in alone:
            tab.click("#again")
            assert tab.locator("article").count() == 0
            one = ask(tab, conversation[0][0], *conversation[0][1])
            assert [one["tokens"]] == expected(demo, conversation)


def test_it_is_used(demo, modules, tmp_path):
    """Loading first, stopping, removing a picture, and errors."""
    with served(demo.browser("int4"), modules) as address, opened("wasm", address) as tab:
        tab.click("#load")
        tab.locator("#state", has_text="WebAssembly").wait_for(timeout=MINUTE)
        whole = ask(tab, STORY)
        assert "stopped" not in whole["note"]
        tab.click("#again")
        tab.evaluate(STOP_AT_ONCE)
        part = ask(tab, STORY)
        assert "stopped" in part["note"]
        assert 0 < len(part["tokens"]) < len(whole["tokens"])
        assert whole["text"].startswith(part["text"])

        (tmp_path / "broken.png").write_text("no picture")
        tab.set_input_files("#file", str(tmp_path / "broken.png"))
        tab.locator("#failure", has_text="broken.png: this browser cannot read it").wait_for()
        tab.set_input_files("#file", str(IMAGES / "shape.png"))
        tab.locator("#chosen figure").wait_for()
        assert not tab.is_visible("#failure")
        tab.click("#chosen button")
        assert not tab.is_visible("#chosen")


def test_a_missing_file_is_told(demo, modules, tmp_path):
    """The library itself would wait for ever."""
    copy = shutil.copytree(demo.browser("int4"), tmp_path / "copy", copy_function=os.link)
    (copy / "onnx" / "vision_encoder_q4.onnx_data").unlink()
    with served(copy, modules) as address, opened("wasm", address) as tab:
        tab.fill("#question", "what is it?")
        tab.press("#question", "Enter")
        words = "onnx/vision_encoder_q4.onnx_data could not be fetched: the server answered 404."
        tab.locator("#failure", has_text=words).wait_for(timeout=MINUTE)
        assert tab.input_value("#question") == "what is it?"
        assert tab.locator("article").count() == 0
        assert tab.is_visible("#load")


def test_a_page_opened_as_a_file_says_what_to_do(demo):
    with opened("wasm", f"{demo.browser('int4').as_uri()}/index.html") as tab:
        assert "python -m surgery demo" in tab.inner_text("#failure")


def test_the_page_is_of_the_package(demo):
    """Its size and its limit are those of the package."""
    folder = demo.browser("int4")
    page = (folder / "index.html").read_text()
    size = sum(file.stat().st_size for file in (folder / "onnx").iterdir())
    assert f'{{"bytes": {size}, "half": false, "limit": 4096}}' in page
    assert (folder / "prepare.mjs").read_text() in page
    own = read_json(folder / "config.json", ValueError)["transformers.js_config"]
    assert own["dtype"] == "q4"
