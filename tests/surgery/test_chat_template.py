"""A chat template that goes into a package writes conversations, or there is none, said aloud."""

from __future__ import annotations

import dataclasses

import pytest

from surgery.base.demo import DEMO
from surgery.base.errors import PackageError
from surgery.base.tokens import Tokens
from surgery.package.chat_template import NONE, check_template


def checked(template):
    """What is said of a template."""
    return check_template(dataclasses.replace(Tokens.read(DEMO, PackageError), template=template))


GOOD = {
    "plain": "{{ messages[0]['content'] }}",
    "a loop that ends early": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "marked answers": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "what only transformers has": "{{ raise_exception(messages | tojson) ~ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("template", GOOD.values(), ids=GOOD)
def test_taken(template):
    assert checked(template) == ""


def test_none():
    """As transformers, which raises only when a conversation is to be written."""
    assert checked(None) == NONE


BAD = {
    "an open block": ("{% for m in messages %}\n{{ m.content }}", "line 2"),
    "an open expression": ("{{ messages", "line 1"),
    "an unknown tag": ("{% messages %}", "unknown tag 'messages'"),
    "nested without end": ("{{ " + "(" * 50_000 + "messages", "nests too deeply"),
    "the name of a file": ("chat_template.jinja", "writes no messages"),
    "no message": ("{{ bos_token }}", "writes no messages"),
}


@pytest.mark.parametrize(("template", "reason"), BAD.values(), ids=BAD)
def test_refused(template, reason):
    with pytest.raises(PackageError) as refused:
        checked(template)
    line = str(refused.value)
    assert line.startswith(f"{DEMO}: chat template") and reason in line and "\n" not in line
