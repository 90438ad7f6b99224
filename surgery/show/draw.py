"""Draw some nodes of a graph as SVG. grandalf computes the layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from grandalf.graphs import Edge, Graph, Vertex, graph_core
from grandalf.layouts import SugiyamaLayout

CHAR, HEIGHT, PAD, GAP = 6.9, 38.0, 18.0, 22.0
"""Sizes in pixels: width of a letter, height of a box, margin in a box, gap between boxes."""


@dataclass(frozen=True)
class Box:
    """A node in a drawing.

    Attributes:
        head: the op type.
        sub: a smaller line below it.
        kind: CSS class: "same", "gone", "new", "touched", "value" or "far".
        hint: tooltip.
    """

    head: str
    sub: str = ""
    kind: str = "same"
    hint: str = ""

    @property
    def width(self) -> float:
        """Width that fits both lines."""
        if self.kind in ("value", "far"):
            return CHAR * len(self.head) * 0.98 + PAD
        return max(58.0, max(CHAR * len(self.head) * 1.08, 6.4 * len(self.sub)) + PAD)

    @property
    def height(self) -> float:
        """Height of the box. Graph inputs, graph outputs and neighbours are lower."""
        return 22.0 if self.kind in ("value", "far") else HEIGHT


class Placed:
    """The size of a box, and the position of its centre that the layout sets."""

    def __init__(self, w: float, h: float) -> None:
        self.w, self.h = w, h
        self.xy = (0.0, 0.0)


class Route:
    """The points of an edge, which the layout sets."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def setpath(self, points: list[tuple[float, float]]) -> None:
        """Store the points. grandalf calls this method."""
        self.points = list(points)


class Arrow(Edge):  # type: ignore[misc]
    """An edge whose hash is its number.

    grandalf iterates over sets of edges, so the hash makes the drawing the same in every run.
    """

    def __init__(self, a: Vertex, b: Vertex, number: int) -> None:
        self.number = number
        super().__init__(a, b)
        self.view = Route()

    def __hash__(self) -> int:
        """Return the number of the edge."""
        return self.number


def svg(boxes: Mapping[str, Box], edges: Iterable[tuple[str, str]], title: str = "") -> str:
    """Draw boxes and the edges between them as one SVG element.

    Args:
        boxes: boxes by key.
        edges: pairs of keys. An edge points down the page from the first to the second.
        title: text for screen readers.
    """
    vertices = {key: Vertex(key) for key in boxes}
    for key, vertex in vertices.items():
        vertex.view = Placed(boxes[key].width, boxes[key].height)
    pairs = [(a, b) for a, b in dict.fromkeys(edges) if a != b]
    links = [Arrow(vertices[a], vertices[b], i) for i, (a, b) in enumerate(pairs)]
    left, bottom = 0.0, 0.0
    for part in Graph(list(vertices.values()), links).C:
        width, height = arrange(part, left)
        left, bottom = left + width + GAP, max(bottom, height)
    lines = [path(link) for link in links]
    drawn = [box(boxes[key], vertex.view) for key, vertex in vertices.items()]
    width, height = max(left - GAP, 0) + 8, bottom + 8
    return (
        f'<svg class="graph" viewBox="-4 -4 {width:.0f} {height:.0f}" '
        f'style="--natural:{width:.0f}px" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(lines)}{"".join(drawn)}</svg>'
    )


def arrange(part: graph_core, left: float) -> tuple[float, float]:
    """Lay out a connected part with its left edge at `left`; return its width and height."""
    layout = SugiyamaLayout(part)
    layout.xspace, layout.yspace = GAP, GAP
    layout.init_all(roots=[v for v in part.sV if not v.e_in()])
    layout.draw(6)
    views = [v.view for v in part.sV]
    x0 = min(view.xy[0] - view.w / 2 for view in views)
    y0 = min(view.xy[1] - view.h / 2 for view in views)
    for view in views:
        view.xy = (view.xy[0] - x0 + left, view.xy[1] - y0)
    for link in part.sE:
        link.view.points = [(x - x0 + left, y - y0) for x, y in link.view.points]
    right = max(view.xy[0] + view.w / 2 for view in views)
    return right - left, max(view.xy[1] + view.h / 2 for view in views)


def path(link: Edge) -> str:
    """Draw an edge as a curve from the bottom of one box to the top of another."""
    a, b = link.v[0].view, link.v[1].view
    start, stop = (a.xy[0], a.xy[1] + a.h / 2), (b.xy[0], b.xy[1] - b.h / 2)
    points = [start, *link.view.points[1:-1], stop]
    d = f"M{start[0]:.1f},{start[1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        d += f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return f'<path d="{d}"/>'


def box(about: Box, view: Placed) -> str:
    """Draw a node as a rounded box with one or two lines of text."""
    x, y = view.xy[0] - view.w / 2, view.xy[1] - view.h / 2
    middle, base = view.xy[0], view.xy[1] + (4 if not about.sub else -2)
    sub = (
        f'<text class="sub" x="{middle:.1f}" y="{base + 13:.1f}">{escape(about.sub)}</text>'
        if about.sub
        else ""
    )
    round_ = 12 if about.kind == "value" else 6
    return (
        f'<g class="{about.kind}"><title>{escape(about.hint or about.head)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{view.w:.1f}" height="{view.h:.1f}" rx="{round_}"/>'
        f'<text x="{middle:.1f}" y="{base:.1f}">{escape(about.head)}</text>{sub}</g>'
    )
