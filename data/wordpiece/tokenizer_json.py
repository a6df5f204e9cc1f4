"""Reads a tokenizer.json, the library `tokenizers`' file of a whole tokenizer; only BERT's are taken."""

import json
import re
from typing import NamedTuple, Optional

from data.wordpiece.added_tokens import read_added_tokens
from util import UserError, read_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
NOT_BERTS = "this is not BERT's own tokenizer, and no other is supported"


class TokenizerFile(NamedTuple):
    """What a tokenizer.json says; strip_accents None: as do_lower_case."""

    vocab: dict
    do_lower_case: bool
    strip_accents: Optional[bool]
    tokenize_chinese_chars: bool
    added_tokens: dict


def read_tokenizer_json(path) -> TokenizerFile:
    """What a tokenizer.json says.

    Raises:
        UserError: it is broken, or describes a tokenizer that is not BERT's;
            the sentence names what is different.
    """
    values = read_json(path, "the tokenizer")
    model, normalizer, splitter = (
        values[name] if isinstance(values.get(name), dict) else {}
        for name in ("model", "normalizer", "pre_tokenizer")
    )
    for name, found, expected in (
        ("model.type", model.get("type", "WordPiece"), ["WordPiece"]),  # older files do not say it
        ("model.unk_token", model.get("unk_token"), ["[UNK]"]),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), ["##"]),
        ("model.max_input_chars_per_word", model.get("max_input_chars_per_word"), [100]),
        ("normalizer.type", normalizer.get("type"), ["BertNormalizer"]),
        ("normalizer.clean_text", normalizer.get("clean_text"), [True]),
        ("normalizer.handle_chinese_chars", normalizer.get("handle_chinese_chars"), [True, False]),
        ("normalizer.strip_accents", normalizer.get("strip_accents"), [None, True, False]),
        ("normalizer.lowercase", normalizer.get("lowercase"), [True, False]),
        ("pre_tokenizer.type", splitter.get("type"), ["BertPreTokenizer"]),
    ):
        expect(path, name, found, expected)
    vocab = _check_vocab(path, model.get("vocab"))
    _check_template(path, values.get("post_processor"), vocab)
    return TokenizerFile(
        vocab,
        normalizer["lowercase"],
        normalizer.get("strip_accents"),
        normalizer["handle_chinese_chars"],
        read_added_tokens(path, values.get("added_tokens")),
    )


def expect(path, name, found, expected) -> None:
    """A UserError where `found`, the setting `name` in the file, is none of `expected`; 1 is not true."""
    if not any(found == value and type(found) is type(value) for value in expected):
        words = " or ".join(map(json.dumps, expected))
        raise UserError(f"{path}: {name} is {json.dumps(found):.80}, expected {words:.300}: {NOT_BERTS}.")


def _check_vocab(path, vocab):
    """The vocabulary {token: id}, in which each token has an id of its own."""
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    good = all(type(number) is int and 0 <= number < 2 * len(ids) for number in ids)
    if not ids or not good or len(set(ids)) < len(ids) or any(re.search("[\r\n]", token) for token in vocab):
        raise UserError(
            f"{path}: model.vocab is not a map from tokens to ids of their own: "
            "take another copy of the model."
        )
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(f"{path}: {len(vocab)} tokens, but no {' '.join(missing)}: {NOT_BERTS}.")
    return {token: number for token, number in vocab.items() if token}


def _check_template(path, processor, vocab):
    """A UserError where texts are not put between [CLS] and [SEP] as BERT has it."""
    processor = processor if isinstance(processor, dict) else {"type": None}
    kinds = ["TemplateProcessing", "BertProcessing"]
    expect(path, "post_processor.type", processor.get("type"), kinds)
    if processor["type"] == "BertProcessing":
        for name, token in (("cls", "[CLS]"), ("sep", "[SEP]")):
            expect(path, f"post_processor.{name}", processor.get(name), [[token, vocab[token]]])
        return
    single = [("SpecialToken", "[CLS]", 0), ("Sequence", "A", 0), ("SpecialToken", "[SEP]", 0)]
    pair = [*single, ("Sequence", "B", 1), ("SpecialToken", "[SEP]", 1)]
    for name, steps in (("single", single), ("pair", pair)):
        expected = [{kind: {"id": what, "type_id": segment}} for kind, what, segment in steps]
        expect(path, f"post_processor.{name}", processor.get(name), [expected])
    special = processor.get("special_tokens")
    for token in ("[CLS]", "[SEP]"):
        facts = special.get(token) if isinstance(special, dict) else None
        ids = facts.get("ids") if isinstance(facts, dict) else None
        expect(path, f"post_processor.special_tokens.{token}.ids", ids, [[vocab[token]]])
