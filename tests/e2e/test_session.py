"""A generator that goes on with the next turn gives what a new one gives on the whole prompt."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Prompt, Runtime, Sampling
from surgery.answer.session import Session
from surgery.base.prompts import IMAGE, turn

QUESTIONS = ("what color is the shape?", "and where is it now?", "how many are there?")
STEPS = 6
DIFFERENCE = 1e-4
"""Largest difference of logits, which are of the order of one to ten."""


def pictures(case, count):
    """Of unlike sizes."""
    rng = np.random.default_rng(5)
    sides = [(case.unit * h, case.unit * w) for h, w in [(4, 6), (3, 3)][:count]]
    return [Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8)) for side in sides]


def last(generator):
    """The logits behind everything that a generator has read."""
    logits = np.asarray(generator.get_logits(), np.float32)
    return logits.reshape(-1, logits.shape[-1])[-1].copy()


def hold(runtime, shown, stops):
    """A conversation in which a new generator reads the whole prompt of each turn, too.

    The last token of a turn is not read before the next one begins, as in `chat`. A turn's prompt
    is that of the turn before, its answer, and the tokens that the template puts behind an answer,
    so that answers need not survive being written as text.

    Returns:
        The largest difference of logits, the length of each answer, and whether the generator
        went on.
    """
    session = Session(runtime, GREEDY, lasting=True)
    prompt = runtime.prompt(runtime.ask(QUESTIONS[0], len(shown)), shown)
    worst, lengths, went_on, found = 0.0, [], [], []
    for number, stop in enumerate(stops):
        if number:
            prompt = behind(runtime, prompt, found, QUESTIONS[number])
        fresh, before, found = runtime.generator(prompt, stop, GREEDY), session.generator, []
        for token in session.answer(prompt, shown, stop):
            found.append(token)
            fresh.generate_next_token()
            assert token == fresh.get_next_tokens()[0], f"turn {number}, token {len(found)}"
            if len(found) < stop and not fresh.is_done():
                difference = abs(last(session.generator) - last(fresh)).max()
                worst = max(worst, float(difference))
        lengths.append(len(found))
        went_on.append(session.generator is before)
    return worst, lengths, went_on


def behind(runtime, prompt, answer, question):
    """The prompt of the next turn."""
    texts = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = runtime.chat([*texts, {"role": "user", "content": question}])
    tail = runtime.tokenizer.encode(text[text.index("b<|im_end|>") + 1 :])
    tail = tail[1:] if answer[-1] == tail[0] else tail
    ids = np.concatenate([prompt.ids, answer, tail]).astype(np.int32)
    tensors = prompt.tensors
    tensors["input_ids"] = ids[None]
    return Prompt(tensors, ids)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_that_are_stopped(case, count):
    """Their last token has no place in the cache."""
    worst, lengths, went_on = hold(case.endless, pictures(case, count), (8 * STEPS, 1, STEPS))
    print(f"max|dlogit| {worst:.1e}")
    assert worst < DIFFERENCE and lengths == [8 * STEPS, 1, STEPS]
    assert went_on == [False, True, True]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_that_end(demo, count):
    """Their end token is neither in the cache nor in the generator's sequence."""
    stops = (4 * STEPS, STEPS, STEPS)
    worst, lengths, went_on = hold(Runtime(demo.fp32), pictures(demo, count), stops)
    print(f"max|dlogit| {worst:.1e}")
    assert worst < DIFFERENCE and lengths[0] < STEPS
    assert went_on == [False, True, True]


def said(conversation, turns, anew=False):
    """Answers to turns, and whether the generator went on with each."""
    answers, went_on = [], []
    for text, shown in turns:
        if anew:
            conversation.session.generator = None
        before = conversation.session.generator
        answers.append("".join(conversation.say(text, shown)))
        went_on.append(before is not None and conversation.session.generator is before)
    return answers, went_on


def test_a_conversation_goes_on_until_a_picture_comes(demo):
    """The same answers as with a new generator each turn."""
    one, two = pictures(demo, 2)
    turns = [(QUESTIONS[0], [one]), (QUESTIONS[1], []), (QUESTIONS[2], [two]), (QUESTIONS[0], [])]
    runtime, greedy = Runtime(demo.fp32), Sampling(temperature=0)
    answers, went_on = said(Conversation(runtime, greedy, 4 * STEPS), turns)
    assert went_on == [False, True, False, True]
    assert answers == said(Conversation(runtime, greedy, 4 * STEPS), turns, anew=True)[0]


def test_an_answer_that_is_left_early(demo):
    """The conversation keeps its part, and the next turn goes on behind it."""
    runtime, greedy = demo.endless, Sampling(temperature=0)
    found = []
    for anew in (False, True):
        conversation = Conversation(runtime, greedy, 4 * STEPS)
        pieces = conversation.say(QUESTIONS[0], pictures(demo, 1))
        part = next(pieces)
        pieces.close()
        assert conversation.messages[-1]["content"] == part
        answers, went_on = said(conversation, [(QUESTIONS[1], [])], anew)
        assert went_on == [not anew]
        found.append(answers)
    assert found[0] == found[1]


def test_another_conversation_starts_anew(demo):
    """Equal tokens for two pictures of one size do not make them one picture."""
    (one,) = pictures(demo, 1)
    other = Image.fromarray(255 - np.asarray(one))
    runtime, greedy = Runtime(demo.fp32), Sampling(temperature=0)
    conversation = Conversation(runtime, greedy, 4 * STEPS)
    said(conversation, [(QUESTIONS[0], [one])])
    conversation.messages[0]["content"] = turn(QUESTIONS[0], IMAGE)
    conversation.pictures = [other]
    assert said(conversation, [(QUESTIONS[1], [])])[1] == [False]
    conversation.messages[1]["content"] = "something else"
    assert said(conversation, [(QUESTIONS[2], [])])[1] == [False], "not what it answered"


@pytest.mark.parametrize("lasting", [False, True])
def test_turns_that_do_not_fit_start_anew(demo, lasting):
    """Only a lasting conversation has room for more; none has more than the context."""
    conversation = Conversation(Runtime(demo.fp32), Sampling(temperature=0), 4 * STEPS, lasting)
    went_on = said(conversation, [(QUESTIONS[0], []), (QUESTIONS[1], []), ("a " * 200, [])])[1]
    assert went_on == [False, lasting, False]


def test_a_cache_that_is_not_shared_is_not_gone_back_in(demo, tmp_path):
    folder = tmp_path / "package"
    shutil.copytree(demo.fp32, folder)
    config = json.loads((folder / "genai_config.json").read_text())
    config["search"]["past_present_share_buffer"] = False
    (folder / "genai_config.json").write_text(json.dumps(config))
    conversation = Conversation(Runtime(folder), Sampling(temperature=0), 4 * STEPS)
    answers, went_on = said(conversation, [(QUESTIONS[0], []), (QUESTIONS[1], [])])
    assert went_on == [False, False] and all(answers)
