"""WordPiece by the names of the BERT release: text -> words (BasicTokenizer) -> pieces (WordpieceTokenizer), ids (FullTokenizer).

Token for token what Hugging Face's BertTokenizer (the fast one) makes of a text, so that transformers feeds our snapshots the
ids that they were trained on. Where that one and the code of the BERT release part, this module goes with
- the BERT release for `[SEP]`, `[MASK]` and the like inside a text: they are text, "[", "sep", "]", so that no review can forge
  a special token. Hugging Face makes special tokens of them unless it is called with split_special_tokens=True;
- the BERT release for pairs that are cut: of an odd room the first text gets the larger half (in Hugging Face's the second);
- Hugging Face for words over 100 characters (the release: over 200), private-use characters (dropped; the release keeps them),
  a capital sigma at the end of a word (lower-cased as anywhere else), and characters that are newer than its tables.
"""

import bisect
import functools
import itertools
import json
import pathlib
import unicodedata
from typing import NamedTuple

import numpy as np

from util import UserError, read_json, sha256

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
CACHE_SIZE = 1 << 16  # pieces of text whose ids are remembered, about 20 MB
CACHED_CHARS = 64  # longer ones are worked out each time

# --------------------------------------------------------------------------------------- the vocabulary


def load_vocab(vocab_file):
    """The vocabulary {token: id} of a vocab.txt: one token a line, the first line is id 0.

    Raises:
        UserError: the file is missing, empty or not UTF-8, has an empty line or a token twice, or lacks a special token.
    """
    path = pathlib.Path(vocab_file)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, expected a vocabulary with one token a line (the vocab.txt of the model)."
        )
    try:
        tokens = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8, expected one token a line in UTF-8: is this a vocab.txt?"
        ) from None
    vocab = {}
    for line, token in enumerate(tokens, start=1):
        if not token:
            found = "an empty line" if len(tokens) > 1 else "an empty file"
            raise UserError(f"{path}:{line}: {found}, expected one token a line: is this a vocab.txt?")
        if token in vocab:
            raise UserError(
                f"{path}:{line}: the token {token!r:.80} is on line {vocab[token] + 1} already, expected each once."
            )
        vocab[token] = line - 1
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(
            f"{path}: {len(vocab)} lines, but no {' '.join(missing)}, expected the vocabulary of a BERT model: "
            "is this a vocab.txt?"
        )
    return vocab


def tokenizer_for(model_dir, vocab_file=None):
    """The FullTokenizer of a model: its vocabulary and its case.

    Args:
        model_dir: the model's folder; its vocab.txt is taken unless vocab_file names another. Lower-casing follows the
            tokenizer_config.json of this folder, else that beside the vocabulary, and is on where there is neither.
    Raises:
        UserError: there is no vocabulary, it is broken, or tokenizer_config.json asks for tokens of another kind.
    """
    vocab_path = pathlib.Path(vocab_file or pathlib.Path(model_dir, "vocab.txt"))
    if not vocab_file and not vocab_path.is_file():
        raise UserError(
            f"{model_dir}: no vocab.txt in this folder: name the model's vocabulary with --vocab_file."
        )
    for config in (
        pathlib.Path(model_dir, "tokenizer_config.json"),
        vocab_path.with_name("tokenizer_config.json"),
    ):
        if config.is_file():
            return FullTokenizer(vocab_path, _configured_case(config))
    return FullTokenizer(vocab_path)


def _configured_case(path):
    """`do_lower_case` of a tokenizer_config.json, and a UserError where another setting would give other tokens than ours."""
    config = read_json(path, "the tokenizer's configuration")
    lower = config.get("do_lower_case", True)
    supported = {
        "do_lower_case": [True, False],
        "strip_accents": [None, lower],
        "tokenize_chinese_chars": [None, True],
        "do_basic_tokenize": [None, True],
        "never_split": [None, []],
        "tokenizer_class": [None, "BertTokenizer", "BertTokenizerFast"],
    }
    for key, values in supported.items():
        if key in config and not any(
            config[key] == value and type(config[key]) is type(value) for value in values
        ):  # 1 is not true
            expected = " or ".join(map(json.dumps, values))
            raise UserError(
                f"{path}: {key} is {json.dumps(config[key]):.80}, expected {expected}: this is not BERT's own tokenizer, "
                "and no other is supported."
            )
    return lower


# --------------------------------------------------------------------------------------- characters


def _borders(ranges):
    """[first, last + 1, first, last + 1, ...] of ranges such as "41-5A 5F", for _within."""
    pairs = [(first, last or first) for first, _, last in (item.partition("-") for item in ranges.split())]
    return [border for first, last in pairs for border in (int(first, 16), int(last, 16) + 1)]


def _within(borders, code):
    return bisect.bisect_right(borders, code) % 2 == 1


# Chinese characters. One range starts at 2B920 in Hugging Face's list, at 2B820 in the release's.
_CHINESE = _borders(
    "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B920-2CEAF 2F800-2FA1F"
)
# Punctuation, accents and format characters that Hugging Face's tables (Unicode 8) do not know as such: letters to it.
_NEWER = _borders(
    "61D 7FD 890-8E2 9FD-9FE A76 AFA-AFF B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1ACE 1B7D-1B7E 1DF6-1DFB "
    "2E43-2E5D A82C A8C5 A8FF A9BD 10D24-10F89 11070-11074 110C2-110CD 111CF 1123E-11241 1133B 11438-1145E 11660-1166C 116B9 "
    "1182F-11FFF 12FF1-13455 16E97-16F4F 16FE2-16FE4 1CF00-1CF46 1E000-1E4EF 1E944-1E95F"
)
# Characters that have changed their category since.
_ONCE = {"\u166d": "alone", "\U000111c9": "alone", "\u1734": "accent"}


def _role(char):
    """What BERT takes a character for: "drop", "space", "alone" (a word of its own), "accent" or "letter"."""
    code, category = ord(char), unicodedata.category(char)
    if char in _ONCE or _within(_NEWER, code):
        return _ONCE.get(char, "letter")
    if char in "\t\n\r" or category[0] == "Z":
        return "space"
    if char == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return "drop"
    if category[0] == "P" or ("!" <= char <= "~" and not char.isalnum()) or _within(_CHINESE, code):
        return "alone"
    return "accent" if category == "Mn" else "letter"


class _Table(dict):
    """A table for str.translate, {code point: text}; `replace(char, role)` is asked once for each character that comes up."""

    def __init__(self, replace):
        self.replace = replace

    def __missing__(self, code):
        char = chr(code)
        self[code] = self.replace(char, _role(char))
        return self[code]


_CLEAN = _Table(lambda char, role: "" if role == "drop" else char)
_CASED = _Table(lambda char, role: {"drop": "", "space": " ", "alone": f" {char} "}.get(role, char))
_UNCASED = _Table(lambda char, role: "" if role == "accent" else _CASED[ord(char)].lower())


def _pieces_to_sort(text, size=256):
    """Yields the text in pieces whose accents can be sorted each for itself, since the time that takes grows with the square of their number.

    A piece ends before a character that is no accent, and only a senseless run of more than `size` accents is torn.
    """
    start = 0
    while start < len(text):
        end = start + size
        while end < min(len(text), start + 2 * size) and unicodedata.combining(text[end]):
            end += 1
        yield text[start:end]
        start = end


# --------------------------------------------------------------------------------------- the tokenizers


class BasicTokenizer:
    """Text -> words: split at whitespace, punctuation marks and Chinese characters alone, control characters dropped.

    Args:
        do_lower_case: also lower-case the text and take off its accents (a character is decomposed first, Unicode NFD).
    """

    def __init__(self, do_lower_case=True):
        self.do_lower_case = do_lower_case

    def tokenize(self, text):
        """The words of `text`, as a list."""
        if not self.do_lower_case:
            return text.translate(_CASED).split()
        if (
            not text.isascii()
        ):  # cleaned first: a dropped character would keep the accents around it from being sorted
            text = "".join(
                unicodedata.normalize("NFD", piece) for piece in _pieces_to_sort(text.translate(_CLEAN))
            )
        return text.translate(_UNCASED).split()


class WordpieceTokenizer:
    """Words -> pieces of the vocabulary, always the longest that fits; pieces within a word start with "##".

    Args:
        vocab: the tokens, as keys of a dict.
        unk_token: stands for a word that cannot be put together, or is longer than max_input_chars_per_word.
    """

    def __init__(self, vocab, unk_token="[UNK]", max_input_chars_per_word=100):
        self.vocab, self.unk_token, self.max_input_chars_per_word = vocab, unk_token, max_input_chars_per_word
        self._longest = max(map(len, vocab), default=0)

    def tokenize(self, text):
        """The pieces of the words of `text` (words: what whitespace parts), as a list."""
        return [piece for word in text.split() for piece in self._pieces(word)]

    def _pieces(self, word):
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = "##" + word[start:end] if start else word[:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unk_token]
            pieces.append(piece)
            start = end
        return pieces


class FullTokenizer:
    """Text -> tokens and ids.

    Args:
        vocab_file: see load_vocab.
        do_lower_case: see BasicTokenizer.
    Attributes:
        vocab_file, vocab {token: id}, inv_vocab [token by id], vocab_sha256 (of the file), do_lower_case.
    """

    def __init__(self, vocab_file, do_lower_case=True):
        self.vocab_file, self.vocab, self.do_lower_case = vocab_file, load_vocab(vocab_file), do_lower_case
        self.inv_vocab, self.vocab_sha256 = list(self.vocab), sha256(vocab_file)
        self.basic_tokenizer, self.wordpiece_tokenizer = (
            BasicTokenizer(do_lower_case),
            WordpieceTokenizer(self.vocab),
        )
        self._remembered = functools.lru_cache(CACHE_SIZE)(lambda part: tuple(self._work_out(part)))

    def tokenize(self, text):
        """The tokens of `text`, as a list, without [CLS] and [SEP]."""
        return self.convert_ids_to_tokens(self.ids(text))

    def convert_tokens_to_ids(self, tokens):
        """The ids of tokens; KeyError for one that is not in the vocabulary."""
        return [self.vocab[token] for token in tokens]

    def convert_ids_to_tokens(self, ids):
        """The tokens of ids."""
        return [self.inv_vocab[number] for number in ids]

    def ids(self, text):
        """Yields the ids of `text` one by one; what is not asked for is not worked out."""
        for part in text.split(" "):  # a space parts words whatever stands beside it
            yield from (self._remembered if len(part) <= CACHED_CHARS else self._work_out)(part)

    def _work_out(self, part):
        for word in self.basic_tokenizer.tokenize(part):
            for piece in self.wordpiece_tokenizer.tokenize(word):
                yield self.vocab[piece]


# --------------------------------------------------------------------------------------- features


class Features(NamedTuple):
    """What BERT reads of an example, int32 arrays [T], T = seq_length."""

    input_ids: np.ndarray  # [CLS] a [SEP] or [CLS] a [SEP] b [SEP], then [PAD]
    input_mask: np.ndarray  # 1 for a token, 0 for padding
    segment_ids: np.ndarray  # 1 for b and the [SEP] after it, else 0
    was_cut: bool  # the text had more tokens than there was room for


def encode(tokenizer, text_a, text_b, seq_length):
    """Features of a text, or of a pair (text_b not None), whose longer text is cut first.

    No more of a text is tokenized than is kept. A text without a single token gives [CLS] [SEP] alone.
    """
    vocab, room = tokenizer.vocab, seq_length - (2 if text_b is None else 3)
    if room < 1:
        raise UserError(
            f"--seq_length is {seq_length}, expected at least {seq_length - room + 1}: there is no room for text."
        )
    a, b = (
        list(itertools.islice(tokenizer.ids(text), room + 1)) if text is not None else []
        for text in (text_a, text_b)
    )
    keep_b = min(len(b), max(room // 2, room - len(a)))
    ids = [vocab["[CLS]"], *a[: room - keep_b], vocab["[SEP]"]]
    segment_1 = len(ids)
    if text_b is not None:
        ids += [*b[:keep_b], vocab["[SEP]"]]
    input_ids, (input_mask, segment_ids) = (
        np.full(seq_length, vocab["[PAD]"], np.int32),
        np.zeros((2, seq_length), np.int32),
    )
    input_ids[: len(ids)] = ids
    input_mask[: len(ids)] = 1
    segment_ids[segment_1 : len(ids)] = 1
    return Features(input_ids, input_mask, segment_ids, len(a) + len(b) > room)
