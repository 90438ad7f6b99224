"""What every pass promises, whatever it does.

Each promise is a function of this module. One test a pass keeps them all on the graph of the
pass's own test module, and lists every promise that is broken. Another breaks each promise on
purpose and expects that it is noticed.
"""

import hashlib
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from graph_fixtures import ROOT, Runner, built, inlined
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import surgery.passes
from surgery.passes.mlp.silu import Silu
from surgery.rewrite import view
from surgery.rewrite.contract import FIELDS, Pass
from surgery.rewrite.scope import SCOPES, scope

MODULES = {
    module.name.rpartition(".")[2]: module.name
    for module in pkgutil.walk_packages(surgery.passes.__path__, "surgery.passes.")
    if not module.ispkg
}
"""Modules of `surgery.passes` by their own name."""
SHARED = {"blocks"}
"""Modules that hold what several passes of a folder share, and no pass."""


def passes_of(module_name):
    """Passes that a module defines; a base class that others share has no name."""
    module = importlib.import_module(MODULES[module_name])
    return [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and issubclass(cls, Pass)
        and cls.__module__ == module.__name__
        and hasattr(cls, "name")
    ]


PASSES = [cls for name in MODULES for cls in passes_of(name)]


HERE = Path(__file__).parent
TESTED = [cls for cls in PASSES if (HERE / f"test_{cls.name}.py").is_file()]


@dataclass(frozen=True)
class Case:
    """A pass and the graph of its test module.

    Attributes:
        cls: the pass.
        make: makes one.
        consumed: weights that it takes into others, so that their names may go.
        graph: makes the graph; without an exporter's metadata where `module` is None.
    """

    cls: type[Pass]
    make: Callable[[], Pass]
    consumed: frozenset[str]
    graph: Callable[..., ir.Model]


def case_of(cls, folder):
    """The case of a pass; the weights of its graph lie in a folder."""
    test = importlib.import_module(f"test_{cls.name}")

    def graph(module="model.layers.0.part"):
        model = built(test.BEFORE, folder, module)
        getattr(test, "prepare", lambda model: None)(model)  # what ONNX text cannot say
        return model

    return Case(cls, test.make, frozenset(getattr(test, "CONSUMED", ())), graph)


def nodes(model):
    return [node for graph in model.graphs() for node in graph]


def weights(model):
    return {
        name
        for name, value in model.graph.initializers.items()
        if not isinstance(value.const_value, ir.Tensor | ir.TensorProtoTensor)
    }


def serialized(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def documented(case):
    """The docstring has a summary and every field."""
    described = case.cls.describe()
    assert all(described[field] for field in ("summary", *FIELDS))
    assert described["summary"].endswith(".")


def sites_read_only(case):
    """Looking for sites and near-misses changes nothing, and finds the same again."""
    model, work = case.graph(), case.make()
    data = serialized(model)
    first = work.sites(model)
    assert first, "no site in BEFORE"
    assert work.sites(model) == first
    work.near_misses(model)
    assert serialized(model) == data


def count_is_sites(case):
    """The count is the number of sites found before, and the graph is rewritten in place."""
    model, work = case.graph(), case.make()
    sites = work.sites(model)
    result = work(model)
    assert work.count == len(sites)
    assert result.modified and result.model is model


def idempotent(case):
    """Run again, by another instance or the same, it finds nothing and changes nothing."""
    model = case.graph()
    first = case.make()
    first(model)
    text = view.text(model)
    for work in (case.make(), first):
        assert work.sites(model) == []
        assert not work(model).modified
        assert work.count == 0
        assert view.diff(text, view.text(model)) == ""


def nothing_leaks(case):
    """What an instance learnt of one graph does not change what it does to the next."""
    work, texts = case.make(), []
    for _ in range(2):
        model = case.graph()
        work(model)
        texts.append(view.text(model))
    assert texts[0] == texts[1]


def names_kept(case):
    """Inputs and outputs keep names and order, except those that the docstring speaks of.

    So do weights, or their names go on as prefixes; no two nodes have one name.
    """
    model, doc = case.graph(), inspect.getdoc(case.cls)

    def interface():
        ends = (model.graph.inputs, model.graph.outputs)
        return [[v.name for v in values if v.name not in doc] for values in ends]

    was, had = interface(), weights(model)
    case.make()(model)
    assert interface() == was
    now = model.graph.initializers
    for name in had - case.consumed:
        assert any(n == name or n.startswith(f"{name}.") for n in now), f"{name} is gone"
    assert len({n.name for n in nodes(model)}) == len(nodes(model))


def new_nodes_say_where_from(case):
    """A new node names its pass, and the module whose nodes it replaces."""
    model = case.graph()
    old = {node.name for node in nodes(model)}
    (home,) = {scope(node) for node in nodes(model)}
    case.make()(model)
    for node in nodes(model):
        if node.name not in old:
            assert node.metadata_props.get("surgery.pass") == case.cls.name, node
            assert scope(node) == home, node


def typed(case):
    """What a rewrite makes at the top has dtype and shape; the next pass reads them."""
    model = case.graph()
    case.make()(model)
    for node in model.graph:
        if "surgery.pass" in node.metadata_props:
            for value in node.outputs:
                assert not value.uses() or value.dtype is not None, node
                assert not value.uses() or value.shape is not None, node


def valid(case):
    """onnxruntime loads the graph, and onnx's checker has no complaint."""
    model = case.graph()
    case.make()(model)
    Runner(model)
    onnx.checker.check_model(onnx.load_from_string(inlined(model)))


def structure_alone(case):
    """A graph without any metadata of an exporter is rewritten alike."""
    ops = []
    for module in ("model.layers.0.part", None):
        model = case.graph(module)
        case.make()(model)
        ops.append([(node.domain, node.op_type) for node in nodes(model)])
        assert module or not any(SCOPES in node.metadata_props for node in nodes(model))
    assert ops[0] == ops[1]


PROMISES = (
    documented,
    sites_read_only,
    count_is_sites,
    idempotent,
    nothing_leaks,
    names_kept,
    new_nodes_say_where_from,
    typed,
    valid,
    structure_alone,
)


def test_one_pass_a_module():
    """A module, its pass's word on the command line, and its class have one name."""
    for name in MODULES.keys() - SHARED:
        (cls,) = passes_of(name)
        assert cls.name == name
        assert cls.__name__.lower() == name.replace("_", "")


def test_every_pass_has_tests():
    """A new pass brings tests/passes/test_NAME.py with BEFORE, the smallest graph, and make()."""
    missing = [f"tests/passes/test_{cls.name}.py" for cls in PASSES if cls not in TESTED]
    assert not missing


@pytest.mark.parametrize("cls", TESTED, ids=lambda cls: cls.name)
def test_promises(cls, tmp_path):
    """All promises are tried; the error lists each one that is broken, with its own traceback."""
    case, broken = case_of(cls, tmp_path), []
    for promise in PROMISES:
        try:
            promise(case)
        except Exception as e:
            e.add_note(f"{cls.name} broke the promise {promise.__name__}: {promise.__doc__}")
            broken.append(e)
    if broken:
        names = ", ".join(e.__notes__[-1].split(":")[0].split()[-1] for e in broken)
        raise ExceptionGroup(f"{cls.name} broke {names}", broken)


class Undocumented(Silu):
    """No field."""


class Marks(Silu):
    def sites(self, model):
        model.graph[0].metadata_props["seen"] = "yes"
        return super().sites(model)


class Miscounts(Silu):
    def apply(self, model):
        return super().apply(model) + 1


class Again(Silu):
    def apply(self, model):
        return super().apply(model) or 1


class Remembers(Silu):
    done = False

    def sites(self, model):
        return [] if self.done else super().sites(model)

    def apply(self, model):
        count = 0 if self.done else super().apply(model)
        self.done = True
        return count


class Renames(Silu):
    def apply(self, model):
        count = super().apply(model)
        model.graph.outputs[0].name = "renamed"
        return count


class Anonymous(Silu):
    def apply(self, model):
        count = super().apply(model)
        for node in nodes(model):
            node.metadata_props.pop("surgery.pass", None)
        return count


class Untyped(Silu):
    """One more node, whose value has no type."""

    def apply(self, model):
        count = super().apply(model)
        out = model.graph.outputs[0]
        last = out.producer()
        inner = ir.Value(name="inner")
        extra = ir.Node(last.domain, last.op_type, last.inputs, last.attributes.values(),
                        outputs=[inner])  # fmt: skip
        extra.metadata_props["surgery.pass"] = "silu"
        model.graph.insert_before(last, extra)
        last.replace_input_with(0, inner)
        return count


class Invalid(Silu):
    def apply(self, model):
        count = super().apply(model)
        for node in nodes(model):
            if node.op_type == "QuickGelu":
                node.op_type = "SlowGelu"
        return count


class ByName(Silu):
    def match(self, node, m):
        m.check(SCOPES in node.metadata_props, "a module of torch", "none")
        return super().match(node, m)


LIARS = {
    documented: Undocumented,
    sites_read_only: Marks,
    count_is_sites: Miscounts,
    idempotent: Again,
    nothing_leaks: Remembers,
    names_kept: Renames,
    new_nodes_say_where_from: Anonymous,
    typed: Untyped,
    valid: Invalid,
    structure_alone: ByName,
}
"""For each promise, a pass that breaks it."""
BREAKS = {documented: TypeError, valid: Fail}
"""How that shows, where it is not an assertion that fails."""


def test_a_broken_promise_is_noticed(tmp_path):
    honest = case_of(Silu, tmp_path)
    for promise in PROMISES:
        liar = LIARS[promise]
        with pytest.raises(BREAKS.get(promise, AssertionError)):
            promise(Case(liar, liar, honest.consumed, honest.graph))


def digests(folder):
    """Each pass, and a hash of what it makes of its graph."""
    lines = []
    for cls in TESTED:
        case = case_of(cls, folder)
        model = case.graph()
        case.make()(model)
        lines.append(f"{cls.name} {hashlib.sha256(serialized(model)).hexdigest()}")
    return lines


def test_the_same_in_every_process(tmp_path):
    """Nothing in a rewrite depends on the seed of Python's hashes or on the order of sets."""
    code = "import sys, pathlib, test_contract as t\n" + (
        "print(*t.digests(pathlib.Path(sys.argv[1])), sep='\\n')"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE)))
    running = []
    for seed in ("1", "77"):
        (tmp_path / seed).mkdir()
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / seed)],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    printed = [process.communicate() for process in running]
    for process, (_, err) in zip(running, printed, strict=True):
        assert process.returncode == 0, err
    one, two = (out.splitlines() for out, _ in printed)
    assert len(one) == len(TESTED)
    assert one == two
