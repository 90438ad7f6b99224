"""Can questions be written with the chat template that goes into a package? Parsed, not run."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from surgery.base.errors import PackageError, first_line
from surgery.base.tokens import TEMPLATE, Tokens

NONE = (
    "no chat template: the package continues texts, and takes no questions (chat, verify and eval "
    f"ask some). Base models have none; for others put {TEMPLATE} into the checkpoint's folder"
)
"""What is told of a checkpoint without a template. transformers loads it, and raises when asked to
write a conversation."""


class Generation(Extension):
    """The block `generation` of transformers, which marks answers for training."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> Sequence[nodes.Node]:  # type: ignore[override]
        """Its content, as if the block were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template(tokens: Tokens) -> str:
    """Parse the chat template as transformers does.

    Returns:
        A line for the user where there is no template; "" otherwise.

    Raises:
        PackageError: the template is no Jinja, or writes nothing of a conversation.
    """
    if tokens.template is None:
        return NONE
    environment = Environment(extensions=[Generation, loopcontrols])
    where = f"{tokens.folder}: chat template"
    try:
        tree = environment.parse(tokens.template)
    except TemplateSyntaxError as e:
        raise PackageError(f"{where}, line {e.lineno}: {first_line(e)}") from e
    except RecursionError as e:
        raise PackageError(f"{where}: nests too deeply.") from e
    if all(name.name != "messages" for name in tree.find_all(nodes.Name)):
        raise PackageError(
            f"{where}: writes no messages. Is it the name of a file that is missing?"
        )
    return ""
