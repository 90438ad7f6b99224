"""Ask a package in Foundry Local; runs in the Python that has foundry-local-sdk.

    python ask.py request.json

A request is {"package": folder, "steps": most tokens of an answer, "conversations": [...]}. A
conversation is a list of turns {"text": question, "pictures": [PNG files]}, and with {"client":
true} in its one turn it goes through the chat client of OpenAI's form. The last line of the output
has a list of {"text": answer, "prompt": tokens of the prompt, "answer": tokens of the answer} for
each conversation.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from foundry_local_sdk import (
    CatalogType,
    ChatSession,
    Configuration,
    FoundryLocalManager,
    ImageItem,
    MessageItem,
    ModelInfoBuilder,
    Request,
    RequestOptions,
    SearchOptions,
    TextItem,
)


def ask(session: ChatSession, turn: dict[str, Any], options: RequestOptions) -> dict[str, Any]:
    """One turn of a session."""
    shown = [ImageItem("png", Path(path).read_bytes()) for path in turn["pictures"]]
    with Request() as request:
        request.add_item(MessageItem.user([*shown, TextItem(turn["text"])]))
        request.set_options(options)
        with session.process_request(request) as response:
            usage = response.get_usage()
            return {
                "text": response.get_item(0).get_simple_text() if response.item_count else "",
                "prompt": usage.prompt_tokens,
                "answer": usage.completion_tokens,
            }


def ask_client(model: Any, turn: dict[str, Any], steps: int) -> dict[str, Any]:
    """One turn of the chat client, which is to be removed at the end of 2026."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = model.get_chat_client()
    client.settings.temperature, client.settings.max_tokens = 0.0, steps
    data = [base64.b64encode(Path(path).read_bytes()).decode() for path in turn["pictures"]]
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{d}"}} for d in data
    ]
    content.append({"type": "text", "text": turn["text"]})
    said = client.complete_chat([{"role": "user", "content": content}])
    return {
        "text": said.choices[0].message.content,
        "prompt": said.usage.prompt_tokens,
        "answer": said.usage.completion_tokens,
    }


def main(request: dict[str, Any], folder: str) -> None:
    """Ask every conversation, and print the answers."""
    settings = Configuration("tests", app_data_dir=folder, disable_nonessential_telemetry=True)
    FoundryLocalManager.initialize(settings)
    catalog = FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)
    info = ModelInfoBuilder().set_string_property("task", "vision-language-chat")
    model = catalog.register_model(request["package"], "package:1", info)
    model.load()
    steps = request["steps"]
    options = RequestOptions(search=SearchOptions(temperature=0.0, max_output_tokens=steps))
    answers = []
    for turns in request["conversations"]:
        if turns[0].get("client"):
            answers.append([ask_client(model, turns[0], steps)])
            continue
        with ChatSession(model) as session:
            answers.append([ask(session, turn, options) for turn in turns])
    model.unload()
    print(json.dumps(answers))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), place)
