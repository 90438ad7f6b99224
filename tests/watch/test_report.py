"""`report`: one page, self-contained, that a browser shows without a complaint."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgery.__main__ import main
from surgery.graph import Graph, load
from surgery.passes import TIDY, Silu
from surgery.show.changes import changes, folded, spans
from surgery.show.plan import plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main(["report", str(folder), "-i", str(raw), "--check-steps"]) == 0
    return folder / "report.html"


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert len(text) < 5_000_000


def test_the_page_shows_the_format_of_every_weight(page: Path) -> None:
    """A cell for each of the 28 matrices of the decoder's layers, with its bits and its share."""
    text = page.read_text(encoding="utf-8")
    told = re.findall(r'<i class="(b4|b8)" title="(\S+): (\d) bits, blocks of \d+, [^"]+">', text)
    assert len(told) == len({name for _, name, _ in told}) == 28
    assert all(kind == f"b{bits}" for kind, _, bits in told)
    assert {bits for *_, bits in told} == {"4", "8"}
    shares = [float(x) for x in re.findall(r'title="[^"]* ([\d.]+)% of the loss"', text)]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_a_plan_without_layers_or_losses_is_drawn_or_left_out() -> None:
    """A weight in float, and one that no loss was estimated for."""
    row = {"name": "model.layers.0.mlp.up_proj.weight", "shape": [8, 4], "bits": None,
           "block": None, "nbytes": 0, "loss": 0.0, "error": None, "worst": [],
           "share": 0.0}  # fmt: skip
    data = {"bits": 4.5, "measured": True, "loss": 0.0, "weights": [row]}
    found = plan(data)
    assert found is not None and found["rows"][0]["cells"][0]["kind"] == "float"
    assert plan(None) is None
    assert plan({**data, "weights": [{**row, "name": "head.weight"}]}) is None


def test_drawing_again_takes_the_dump_that_is_there(page: Path) -> None:
    before = page.read_bytes()
    assert main(["report", str(page.parent)]) == 0
    assert page.read_bytes() == before


def test_a_directory_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no dump of a run" in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def silu(raw: Path) -> tuple[Graph, Graph]:
    before = load(raw / "decoder.onnx").run(*TIDY)
    return before, before.run(Silu())


def test_layers_that_changed_alike_are_one_group(silu: tuple[Graph, Graph]) -> None:
    (group,) = changes(silu[0].model, silu[1].model)
    assert group.title == "model.language_model.layers.0-3"
    assert [c.node.op_type for c in group.side("before")] == ["Sigmoid", "Mul", "Mul"]
    assert [(c.sign, c.node.op_type) for c in group.side("after")] == [
        ("+", "QuickGelu"),
        ("~", "Mul"),
    ]
    lines = folded(silu[1].text(), [group])
    assert sum("QuickGelu" in line for line in lines) == 1


def test_nothing_changed_is_no_group(silu: tuple[Graph, Graph]) -> None:
    assert changes(silu[0].model, silu[0].model.clone()) == []


def test_numbers_in_a_few_words() -> None:
    assert spans([0, 2, 3, 4, 9]) == "0, 2-4, 9"


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as p:
        found = p.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


def test_a_browser_walks_through(page: Path, browser: Any) -> None:
    tab = browser.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or said.append(r.url))
    start = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("section:not([hidden]) svg.graph")
    assert time.perf_counter() - start < 5

    for graph in ("vision", "embedding", "decoder"):
        tab.click(f"[role=tab][data-graph={graph}]")
        for step in tab.query_selector_all(f".strip[data-graph={graph}] .step"):
            step.click()
            title = tab.inner_text("section:not([hidden]) h2")
            assert title == step.query_selector("span").inner_text().replace("\n", "")
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text("section:not([hidden]) h2") != title

    tab.fill("#find", "layers.2.mlp.act_fn QuickGelu")
    assert tab.locator("#hits button").count() >= 1
    tab.locator("#hits button").first.click()
    assert tab.inner_text("section:not([hidden]) h2") == "silu"
    tab.fill("#find", "no such node")
    assert "no pass changed" in tab.inner_text("#hits")
    theme = tab.evaluate("document.documentElement.dataset.theme")
    tab.click("#theme")
    assert tab.evaluate("document.documentElement.dataset.theme") != theme
    assert said == []
