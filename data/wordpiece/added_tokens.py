"""Tokens that a text is searched for before it is split into words, as transformers finds them."""

import re
from typing import NamedTuple

from data.wordpiece.characters import is_word_char
from util import UserError, read_json

# In a text they are text, so that none is forged:
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class AddedToken(NamedTuple):
    """A token that is searched for, by the names of the library `tokenizers`.

    normalized: in the text as it is after lower-casing; single_word: not within a word.
    lstrip, rstrip: it takes the blanks beside it along; these give no tokens anyhow.
    """

    content: str
    id: int
    normalized: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False


def read_added_tokens(path, listed) -> dict:
    """{content: AddedToken} of the list in a tokenizer.json."""
    if not isinstance(listed, list):
        raise UserError(f"{path}: added_tokens is not a list: take another copy of the model.")
    tokens = [_flagged(path, each.get("id") if isinstance(each, dict) else None, each) for each in listed]
    return {token.content: token for token in tokens}


def choose_added_tokens(folder, config, file_path, file, vocab) -> tuple:
    """The added tokens of a folder in the order of their ids.

    Args:
        config: the content of the folder's tokenizer_config.json, {} where it has none.
        file: the TokenizerFile of file_path, or None.
        vocab: {token: id}, to which they are added.
    Raises:
        UserError: two files that give a token other ids or flags, or an id that is not the next one.
    """
    config_path, loose_path = folder / "tokenizer_config.json", folder / "added_tokens.json"
    names, merged, origin = _special_names(folder, config), {}, {}
    if file:
        _merge(merged, origin, file_path, file.added_tokens)
    if "added_tokens_decoder" in config:
        _merge(merged, origin, config_path, _read_decoder(config_path, config["added_tokens_decoder"]))
    if loose_path.is_file():
        loose = {}
        for content, number in read_json(loose_path, "the added tokens").items():
            special = content in names
            token = _check(loose_path, AddedToken(content, number, normalized=not special, special=special))
            known = merged.get(content)  # whose flags are said elsewhere
            loose[content] = known._replace(id=number) if known else token
        _merge(merged, origin, loose_path, loose)
    return _check_ids(merged, origin, names, vocab)


def _merge(merged, origin, path, tokens):
    """Adds the tokens of the file `path` to those of earlier files; the same token must be alike in all."""
    for content, token in tokens.items():
        if content in merged and token[:4] != merged[content][:4]:
            raise UserError(
                f"{origin[content]} and {path}: they differ on the added token {content!r:.80}: "
                "mend the one that the model was not trained with."
            )
        merged.setdefault(content, token)
        origin.setdefault(content, path)


def _check_ids(merged, origin, names, vocab):
    """The tokens, whose ids go on where the vocabulary ends, as do those of special ones without an id."""
    following, chosen = max(vocab.values()) + 1, []
    for token in sorted(merged.values(), key=lambda each: each.id):
        expected = vocab.get(token.content, following)
        if token.id != expected:
            raise UserError(
                f"{origin[token.content]}: the added token {token.content!r:.80} has the id {token.id}, "
                f"expected {expected}: is this the vocabulary of the model?"
            )
        following += token.content not in vocab
        chosen.append(token)
    for name in names:
        if name not in merged:
            chosen.append(AddedToken(name, vocab.get(name, following), normalized=False, special=True))
            following += name not in vocab
    return tuple(token for token in chosen if token.content not in BERT_TOKENS)


def _special_names(folder, config):
    """The further special tokens of tokenizer_config.json, or of an older one's special_tokens_map.json."""
    sources, path, found = [config], folder / "special_tokens_map.json", []
    if path.is_file() and "added_tokens_decoder" not in config:
        sources.append(read_json(path, "the special tokens"))
    for values in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = values.get(key) or []
            listed = listed.values() if isinstance(listed, dict) else listed
            found += map(token_text, listed if not isinstance(listed, (str, int, float)) else [])
    return [name for name in dict.fromkeys(map(str, found)) if name]


def token_text(token):
    """The text of a token, which stands in JSON as it is or with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _read_decoder(path, decoder):
    """{content: AddedToken} of the added_tokens_decoder of a tokenizer_config.json."""
    if not isinstance(decoder, dict) or not all(re.fullmatch("[0-9]{1,9}", key) for key in decoder):
        raise UserError(f"{path}: added_tokens_decoder is not a map from ids to tokens: take another copy.")
    tokens = [_flagged(path, int(key), value) for key, value in decoder.items()]
    return {token.content: token for token in tokens}


def _flagged(path, number, values):
    """The AddedToken of an object with `content` and flags."""
    values = values if isinstance(values, dict) else {}
    flags = {name: values.get(name, False) for name in ("single_word", "lstrip", "rstrip", "special")}
    flags["normalized"] = values.get("normalized", not flags["special"])
    if any(type(flag) is not bool for flag in flags.values()):
        number = None
    return _check(path, AddedToken(content=values.get("content"), id=number, **flags))


def _check(path, token):
    """`token` after a check that it has a text and an id."""
    blank = (
        not isinstance(token.content, str) or not token.content.strip() or re.search("[\r\n]", token.content)
    )
    if type(token.id) is not int or blank:
        raise UserError(
            f"{path}: an added token is {list(token[:2])!r:.80}, expected a text on one line that is not "
            "blank, its id, and flags that are true or false: take another copy of the model."
        )
    return token


class AddedTokenFinder:
    """Finds added tokens in a text, from left to right the longest first.

    Args:
        tokens: AddedTokens.
        prepare: what is done with the text is done with the token that is looked for.
    """

    def __init__(self, tokens, prepare):
        self.tokens = {prepare(token.content): token for token in tokens}
        if "" in self.tokens:
            raise UserError(
                f"the added token {self.tokens[''].content!r} has no visible character: remove it."
            )
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text):
        """Yields the parts of `text` as (part, None), and (token, id) for an added token."""
        start = 0
        for found in self._pattern.finditer(text) if self.tokens else ():
            token = self.tokens[found[0]]
            before = text[max(0, found.start() - 1) : found.start()]
            after = text[found.end() : found.end() + 1]
            if token.single_word and (is_word_char(before) or is_word_char(after)):
                continue
            yield text[start : found.start()], None
            yield found[0], token.id
            start = found.end()
        yield text[start:], None
