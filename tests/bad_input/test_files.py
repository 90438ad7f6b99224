"""The one reader of files from strangers: what it refuses, quickly and in one line."""

from __future__ import annotations

import json
import os
import socket
import sys

import pytest

from surgery.base.errors import CheckpointError, UserError
from surgery.base.files import DEPTH, DIGITS, Fields, parse_json, read_json, read_text
from surgery.base.pictures import open_picture

LINUX = pytest.mark.skipif(sys.platform == "win32", reason="no such kinds of file there")


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 100 characters
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def text(content):
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    )


FILES = {
    "missing": (lambda path: None, "is missing"),
    "folder": (lambda path: path.mkdir(), "a folder, must be a regular file"),
    "fifo": (fifo, "a FIFO, must be a regular file"),
    "socket": (listening, "a socket, must be a regular file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "a device, must be a regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "is missing"),
    "under a file": (lambda path: None, "is missing"),
    "empty": (text(""), "not valid JSON"),
    "cut": (text('{"a": '), "not valid JSON"),
    "two values": (text("{}{}"), "not valid JSON"),
    "list": (text("[]"), "holds a list, needs to hold an object"),
    "null": (text("null"), "holds null, needs to hold an object"),
    "number": (text("3"), "holds a number, needs to hold an object"),
    "not UTF-8": (text(b'{"a": "\xff"}'), "not valid JSON"),
    "UTF-16": (text('{"a": 1}'.encode("utf-16")), "not valid JSON"),
    "null characters": (text(bytes(100)), "not valid JSON"),
    "NaN": (text('{"a": NaN}'), "NaN is no JSON number"),
    "infinity": (text('{"a": [-Infinity]}'), "-Infinity is no JSON number"),
    "overflow": (text('{"a": 1e999}'), "too large for a number"),
    "long integer": (text('{"a": ' + "9" * 5000 + "}"), "integer of 5,000 digits"),
    "deep list": (text('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"), "nests deeper than"),
    "deep object": (text('{"a": ' * 500 + "1" + "}" * 500), "nests deeper than"),
    "large": (text('{"a": "' + "x" * (1 << 20) + '"}'), "larger than 1,048,576 bytes"),
}


@LINUX
@pytest.mark.parametrize(("make", "message"), FILES.values(), ids=FILES)
def test_refused(tmp_path, make, message):
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(CheckpointError) as found:
        read_json(path, CheckpointError)
    line = str(found.value)
    assert message in line and "config.json" in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(CheckpointError) as found:
        read_json(tmp_path / name, CheckpointError)
    assert "cannot be read" in str(found.value) and len(str(found.value)) < 400


ACCEPTED = {
    "plain": (b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "nested to the limit": (b'{"a": ' * 64 + b"1" + b"}" * 64, None),
    "a published length": (b'{"model_max_length": 1000000000000000019884624838656}', None),
}


@pytest.mark.parametrize(("data", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(tmp_path, data, value):
    path = tmp_path / "real.json"
    path.write_bytes(data)
    (tmp_path / "link.json").symlink_to(path)  # as in the hub's cache
    assert value is None or read_json(path, CheckpointError) == value
    assert read_json(tmp_path / "link.json", CheckpointError) == read_json(path, CheckpointError)


def test_limits_are_exact():
    assert parse_json("9" * DIGITS) == int("9" * DIGITS)
    with pytest.raises(ValueError, match="digits"):
        parse_json("9" * (DIGITS + 1))
    parse_json("[" * DEPTH + "]" * DEPTH)
    with pytest.raises(ValueError, match="nests deeper"):
        parse_json("[" * (DEPTH + 2) + "]" * (DEPTH + 2))


def test_text_of_another_encoding(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes("größer".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8: .* at byte 2"):
        read_text(tmp_path / "chat_template.jinja", UserError)


WRONG = [None, True, "7", 7.5, float("inf"), [], {}, [7], -(1 << 70), 1 << 70]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "get",
    [
        lambda fields: fields.integer("k", 1, 100),
        lambda fields: fields.number("k", 1, 5),
        lambda fields: fields.numbers("k", 1, 100, 3),
        lambda fields: fields.filename("k"),
        lambda fields: list(
            fields.objects("k", 0) if fields.values["k"] else fields.objects("z", 0)
        ),
    ],
)
def test_values_of_the_wrong_kind(tmp_path, get, value):
    if value == "7":
        value = "../7"
    with pytest.raises(CheckpointError) as found:
        get(Fields(tmp_path / "config.json", {"k": value}, CheckpointError, "part."))
    line = str(found.value)
    assert "config.json: part." in line and "needs" in line and len(line) < 300


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", "", ".", "..", "c:x", "a\0"])
def test_a_file_name_stays_in_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="the same folder"):
        Fields(tmp_path / "f", {"k": name}, UserError).filename("k")


def test_what_a_message_repeats_is_short_and_printable(tmp_path):
    fields = Fields(tmp_path / "f", {"k": "\x1b[31m" + "x" * 10_000}, UserError)
    with pytest.raises(UserError) as found:
        fields.integer("k", 0, 1)
    assert "\x1b" not in str(found.value) and len(str(found.value)) < 300


@LINUX
@pytest.mark.parametrize("make", [fifo, lambda path: path.symlink_to("/dev/zero")])
def test_no_picture(tmp_path, make):
    make(tmp_path / "picture.png")
    with pytest.raises(UserError, match="must be a regular file"):
        open_picture(tmp_path / "picture.png")


def test_a_value_survives(tmp_path):
    value = {"a": {"b": [0.25, "ü", {"c": None}]}}
    (tmp_path / "f").write_text(json.dumps(value), encoding="utf-8")
    assert read_json(tmp_path / "f", UserError) == value
