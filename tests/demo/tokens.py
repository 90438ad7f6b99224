"""A byte-level BPE tokenizer in Qwen's own file format, with some hundred tokens."""

from random import Random

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.demo import tasks

# Qwen2's pre-tokenizer: contractions, words with their leading space, single digits, the rest.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NOT_SPECIAL = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
MOST = 608  # tokens; the words need fewer


def words(seed: int = 0, scenes: int = 3000) -> list[str]:
    """Every word of the questions, the answers and the chat, once each however common it is."""
    rng = Random(seed)
    sizes = (tasks.SIZES[0], tasks.SIZES[0])
    texts = {"user\n", "assistant\n", *(text for pair in tasks.CHAT for text in pair)}
    for _ in range(scenes):
        one = tasks.ask_one(rng, tasks.one_shape(rng))
        many = tasks.ask_many(rng, tasks.many_shapes(rng, tasks.SIZES[0]))
        number = tasks.ask_number(rng, tasks.number_scene(rng, tasks.SIZES[0]))
        two = tasks.ask_two(rng, *tasks.two_scenes(rng, sizes))
        for question in (one, many, number, two):
            texts |= {question.text, question.answer}
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})


def build() -> Tokenizer:
    """Learns the words whole; the added tokens follow the learned ones, as in Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=MOST - len(SPECIAL) - len(NOT_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(words(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in NOT_SPECIAL])
    return tokenizer


def settings(tokenizer: Tokenizer, published: dict) -> dict:
    """tokenizer_config.json: the published keys, and the added tokens with their numbers here."""
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL,
        }
        for text in SPECIAL + NOT_SPECIAL
    }
    return {"added_tokens_decoder": added} | published
