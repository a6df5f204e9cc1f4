"""How the texts of a model are split: case, accents, Chinese characters, added tokens."""

import json
import pathlib
import re
from typing import NamedTuple

from data.wordpiece.added_tokens import choose_added_tokens, token_text
from data.wordpiece.tokenizer_json import expect, read_tokenizer_json
from data.wordpiece.tokens import first_difference
from util import UserError, read_json

FILES = ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
TAKES = {
    "do_lower_case": [True, False],
    "strip_accents": [None, True, False],
    "tokenize_chinese_chars": [None, True, False],
    "do_basic_tokenize": [None, True],
    "never_split": [None, []],
}
CLASSES = [f"{name}Tokenizer{fast}" for name in ("Bert", "DistilBert", "Electra") for fast in ("", "Fast")]
ANY_CLASS = ["PreTrainedTokenizerFast", "TokenizersBackend"]  # of these tokenizer.json says it all


class TokenizerSettings(NamedTuple):
    """What makes the tokens of a text, beside the vocabulary. reason: where the case is from, in words."""

    do_lower_case: bool
    strip_accents: bool
    tokenize_chinese_chars: bool
    added_tokens: tuple
    reason: str


def read_settings(model_dir, vocab_file, vocab, do_lower_case=None) -> TokenizerSettings:
    """The settings of a model's tokenizer.

    Args:
        model_dir: the model's folder; where it holds no word on its tokenizer,
            the one of `vocab_file` is asked.
        vocab: {token: id} of vocab_file.
        do_lower_case: of the flag; None: as the files say.
    Raises:
        UserError: a setting that is not BERT's, or two files that contradict each other.
    """
    vocab_file = pathlib.Path(vocab_file)
    folders = [pathlib.Path(model_dir), vocab_file.parent]
    folder = next((each for each in folders if any((each / name).is_file() for name in FILES)), folders[0])
    config_path = folder / "tokenizer_config.json"
    file_path = vocab_file if vocab_file.suffix == ".json" else folder / "tokenizer.json"
    file = read_tokenizer_json(file_path) if file_path.is_file() else None
    config = read_json(config_path, "the tokenizer's configuration") if config_path.is_file() else {}
    _check_config(config_path, config, file)
    where = first_difference(vocab, file.vocab) if file and file_path.parent == vocab_file.parent else ""
    if where:
        raise UserError(
            f"{vocab_file} and {file_path}: two vocabularies in one folder, and {where}: "
            "remove the one that the model was not trained with."
        )
    both = (config_path, config, file_path, file)
    lower, reason = _choose_case(*both, vocab, do_lower_case)
    strip = _agree(*both, "strip_accents", lower)
    chinese = _agree(*both, "tokenize_chinese_chars", True)
    return TokenizerSettings(
        lower, strip, chinese, choose_added_tokens(folder, config, file_path, file, vocab), reason
    )


def _check_config(path, config, file):
    """A UserError where a tokenizer_config.json asks for tokens of another kind than BERT's."""
    classes = [None, *CLASSES, *(ANY_CLASS if file else [])]
    for key, expected in {**TAKES, "tokenizer_class": classes}.items():
        if key in config:
            expect(path, key, config[key], expected)
    for key in ("unk_token", "sep_token", "pad_token", "cls_token"):
        if config.get(key) is not None:
            expect(path, key, token_text(config[key]), [f"[{key[:3].upper()}]"])


def _choose_case(config_path, config, file_path, file, vocab, flag):
    """Whether texts are lower-cased, and where that is from, in words."""
    if flag is not None:
        return flag, "--do_lower_case"
    if "do_lower_case" in config:
        if file and file.do_lower_case != config["do_lower_case"]:
            raise UserError(
                f"{config_path} says do_lower_case {json.dumps(config['do_lower_case'])}, "
                f"{file_path} says lowercase {json.dumps(file.do_lower_case)}: "
                "say which it is with --do_lower_case true or false."
            )
        return config["do_lower_case"], config_path.name
    if file:
        return file.do_lower_case, file_path.name
    words = (token for token in vocab if not re.fullmatch(r"\[.*\]", token))
    capital = next((token for token in words if re.search("[A-Z]", token)), None)
    if capital is None:
        return True, "no token has a capital letter"
    return False, f"tokens such as {capital!r:.40} have capital letters"


def _agree(config_path, config, file_path, file, key, default):
    """The value of a setting that both files may hold; None there stands for `default`."""
    values = [config[key]] if key in config else []
    values += [getattr(file, key)] if file else []
    found = [default if value is None else value for value in values]
    if len(set(found)) > 1:
        raise UserError(
            f"{config_path} says {key} {json.dumps(found[0])}, {file_path} says {json.dumps(found[1])}: "
            "mend the one that the model was not trained with."
        )
    return found[0] if found else default
