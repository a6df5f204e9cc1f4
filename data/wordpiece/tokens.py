"""The vocabulary {token: id} of a vocab.txt or a tokenizer.json, and how two of them compare."""

import pathlib

from data.wordpiece.tokenizer_json import SPECIAL_TOKENS, read_tokenizer_json
from util import UserError, check_not_pointer


def load_vocab(vocab_file) -> dict:
    """The vocabulary {token: id} of a vocab.txt, one token a line, from id 0; or of a tokenizer.json.

    An empty line is an id that no text gets, and of a repeated token the last line counts, as in
    transformers.
    Raises:
        UserError: the file is missing, empty or not UTF-8, or lacks a special token.
    """
    path = pathlib.Path(vocab_file)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, expected a vocabulary with one token a line (the vocab.txt of the model)."
        )
    check_not_pointer(path)
    if path.suffix == ".json":
        return read_tokenizer_json(path).vocab
    try:
        tokens = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8, expected one token a line in UTF-8: is this a vocab.txt?"
        ) from None
    if not any(tokens):
        raise UserError(f"{path}:1: an empty file, expected one token a line: is this a vocab.txt?")
    vocab = {token: number for number, token in enumerate(tokens) if token}
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(
            f"{path}: {len(vocab)} lines, but no {' '.join(missing)}, expected the vocabulary of a BERT "
            "model: is this a vocab.txt?"
        )
    return vocab


def find_vocab_file(model_dir) -> pathlib.Path:
    """The file with the vocabulary of a model folder: vocab.txt, or where there is none tokenizer.json."""
    for name in ("vocab.txt", "tokenizer.json"):
        if pathlib.Path(model_dir, name).is_file():
            return pathlib.Path(model_dir, name)
    raise UserError(
        f"{model_dir}: no vocab.txt in this folder, nor a tokenizer.json: "
        "name the model's vocabulary with --vocab_file."
    )


def list_by_id(vocab) -> list:
    """The tokens of {token: id} in the order of their ids; "" for an id that no token has."""
    tokens = [""] * (max(vocab.values()) + 1)
    for token, number in vocab.items():
        tokens[number] = token
    return tokens


def first_difference(vocab, other) -> str:
    """Where two vocabularies {token: id} differ first, in words; "" where they are the same."""
    if vocab == other:
        return ""
    one, two = list_by_id(vocab), list_by_id(other)
    for number, (left, right) in enumerate(zip(one, two)):
        if left != right:
            return f"the token with id {number} is {left!r:.80} in the first and {right!r:.80} in the second"
    return f"the first has {len(one)} tokens, the second {len(two)}"
