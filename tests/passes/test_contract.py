"""What every pass promises, whatever it does. Each is run on the graph of its own test module."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import surgery.passes
from surgery.rewrite import view
from surgery.rewrite.contract import FIELDS, Pass
from surgery.rewrite.scope import SCOPES, scope

MODULES = {
    module.name.rpartition(".")[2]: module.name
    for module in pkgutil.walk_packages(surgery.passes.__path__, "surgery.passes.")
    if not module.ispkg
}
"""Modules of `surgery.passes` by their own name."""
SHARED = {"blocks", "segments"}
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


@pytest.fixture(params=TESTED, ids=lambda cls: cls.name)
def case(request):
    """A pass's class and its test module."""
    return request.param, importlib.import_module(f"test_{request.param.name}")


@pytest.fixture
def before(case, build):
    return prepared(case, build)


def prepared(case, build, **kwargs):
    """The module's graph; what ONNX text cannot say, its `prepare` does."""
    _, module = case
    model = build(module.BEFORE, **kwargs)
    getattr(module, "prepare", lambda model: None)(model)
    return model


def nodes(model):
    return [node for graph in model.graphs() for node in graph]


def weights(model):
    return {
        name
        for name, value in model.graph.initializers.items()
        if not isinstance(value.const_value, ir.Tensor | ir.TensorProtoTensor)
    }


def test_one_pass_a_module():
    """A module, its pass's word on the command line, and its class have one name."""
    for name in MODULES.keys() - SHARED:
        (cls,) = passes_of(name)
        assert cls.name == name
        assert cls.__name__.lower() == name.replace("_", "")


@pytest.mark.parametrize("cls", PASSES, ids=lambda cls: cls.name)
def test_has_tests(cls):
    """A new pass brings tests/passes/test_NAME.py with BEFORE, the smallest graph, and make()."""
    assert cls in TESTED


def test_docstring(case):
    cls, _ = case
    described = cls.describe()
    assert all(described[field] for field in ("summary", *FIELDS))
    assert described["summary"].endswith(".")


def test_sites_read_only(case, before):
    data = ir.to_proto(before).SerializeToString(deterministic=True)
    work = case[1].make()
    first = work.sites(before)
    assert first and work.sites(before) == first
    work.near_misses(before)
    assert ir.to_proto(before).SerializeToString(deterministic=True) == data


def test_count_is_sites(case, before):
    work = case[1].make()
    sites = work.sites(before)
    result = work(before)
    assert work.count == len(sites)
    assert result.modified and result.model is before


def test_idempotent(case, before):
    case[1].make()(before)
    text = view.text(before)
    for work in (case[1].make(), case[1].make()):
        assert work.sites(before) == []
        assert not work(before).modified
        assert work.count == 0
        assert view.diff(text, view.text(before)) == ""


def test_one_instance_twice(case, build):
    """What an instance learnt of one graph must not leak into the next."""
    work = case[1].make()
    texts = []
    for _ in range(2):
        model = prepared(case, build)
        work(model)
        texts.append(view.text(model))
    assert texts[0] == texts[1]


def test_names_kept(case, before):
    """Inputs and outputs keep names and order, except those that the docstring speaks of."""
    cls, module = case
    doc = inspect.getdoc(cls)

    def interface():
        ends = (before.graph.inputs, before.graph.outputs)
        return [[v.name for v in values if v.name not in doc] for values in ends]

    was, had = interface(), weights(before)
    module.make()(before)
    assert interface() == was
    now = before.graph.initializers
    for name in had - set(getattr(module, "CONSUMED", ())):
        assert any(n == name or n.startswith(f"{name}.") for n in now), f"{name} is gone"
    assert len({n.name for n in nodes(before)}) == len(nodes(before))


def test_new_nodes_say_where_from(case, before):
    cls, module = case
    old = {node.name for node in nodes(before)}
    (home,) = {scope(node) for node in nodes(before)}
    module.make()(before)
    for node in nodes(before):
        if node.name not in old:
            assert node.metadata_props["surgery.pass"] == cls.name, node
            assert scope(node) == home, node


def test_typed(case, before):
    """What a rewrite makes at the top has a type; the next pass reads it."""
    case[1].make()(before)
    for node in before.graph:
        if "surgery.pass" in node.metadata_props:
            for value in node.outputs:
                assert not value.uses() or value.dtype is not None, node
                assert not value.uses() or value.shape is not None, node


def test_valid(case, before, run_inlined):
    case[1].make()(before)
    data = run_inlined(before)
    onnx.checker.check_model(onnx.load_from_string(data))


def test_structure_alone(case, build):
    """A graph without any metadata of torch is rewritten alike."""
    ops = []
    for module in ("model.layers.0.part", None):
        model = prepared(case, build, module=module)
        case[1].make()(model)
        ops.append([(node.domain, node.op_type) for node in nodes(model)])
        assert module or not any(SCOPES in node.metadata_props for node in nodes(model))
    assert ops[0] == ops[1]


def test_twice_is_the_same_text(case, build):
    """Nothing in a rewrite depends on hashes or on the order of sets."""
    texts = []
    for _ in range(2):
        model = prepared(case, build)
        case[1].make()(model)
        texts.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert texts[0] == texts[1]
