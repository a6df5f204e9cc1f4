"""WordPiece by the names of the BERT release.

Text -> words (BasicTokenizer) -> pieces (WordpieceTokenizer) -> ids (FullTokenizer).

Token for token what Hugging Face's BertTokenizer (the fast one) makes of a text, so that transformers feeds
our snapshots the ids that they were trained on. Where that one and the code of the BERT release part, this
module goes with
- the BERT release for `[SEP]`, `[MASK]` and the like inside a text: they are text, "[", "sep", "]", so that
  no review can forge a special token. Hugging Face makes special tokens of them unless it is called with
  split_special_tokens=True;
- Hugging Face for words over 100 characters (the release: over 200), private-use characters (dropped; the
  release keeps them), a capital sigma at the end of a word (lower-cased as anywhere else), characters that
  are newer than its tables, and pairs that are cut: of an odd room the longer text gets the larger half, or
  the second of two that are equally long.
"""

import collections
import functools
import hashlib
import itertools
import json
import unicodedata
from typing import NamedTuple

import numpy as np

from data.wordpiece.added_tokens import AddedTokenFinder
from data.wordpiece.characters import CLEAN, pieces_to_sort, translation_table
from data.wordpiece.settings import read_settings
from data.wordpiece.tokens import find_vocab_file, first_difference, list_by_id, load_vocab
from util import UserError

CACHE_SIZE = 1 << 16  # pieces of text whose ids are remembered, about 20 MB
CACHED_CHARS = 64  # longer ones are worked out each time
TRUNCATIONS = ("head", "head_tail")  # what is kept of a long text

# --------------------------------------------------------------------------------------- the tokenizers


class BasicTokenizer:
    """Text -> words: split at whitespace, punctuation and Chinese characters; control characters dropped.

    Args:
        do_lower_case: also lower-case the text.
        strip_accents: take off its accents (a character is decomposed first, Unicode NFD);
            None: as do_lower_case.
        tokenize_chinese_chars: each Chinese character is a word.
    """

    def __init__(self, do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True):
        self.do_lower_case, self.tokenize_chinese_chars = do_lower_case, tokenize_chinese_chars
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self._words, self._text = (
            translation_table(do_lower_case, self.strip_accents, tokenize_chinese_chars, punctuation)
            for punctuation in (True, False)
        )

    def tokenize(self, text):
        """The words of `text`, as a list."""
        return self._decompose(text).translate(self._words).split()

    def normalize(self, text):
        """`text` before it is split at punctuation: cleaned, in its case, and with blanks around Chinese."""
        return self._decompose(text).translate(self._text)

    def split(self, text):
        """The words of a text that is normalized."""
        return text.translate(translation_table(False, False, False, True)).split()

    def _decompose(self, text):
        """`text` with accents as characters of their own, where they are to be stripped."""
        if not self.strip_accents or text.isascii():
            return text
        # cleaned first: a dropped character would keep the accents around it from being sorted
        pieces = pieces_to_sort(text.translate(CLEAN))
        return "".join(unicodedata.normalize("NFD", piece) for piece in pieces)


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
        do_lower_case, strip_accents, tokenize_chinese_chars: see BasicTokenizer.
        added_tokens: AddedTokens, which a text is searched for before it is split.
        reason: where the case is from, in words.
        vocab: what load_vocab made of the file, where that is known.
        truncate: one of TRUNCATIONS, for `encode`.
    Attributes:
        vocab {token: id}, with the added tokens; inv_vocab [token by id]; vocab_size;
            model_vocab, without added tokens.
        vocab_sha256: of the tokens, one a line as in a vocab.txt,
            and of what else decides on ids, where it is unusual.
    """

    def __init__(
        self,
        vocab_file,
        do_lower_case=True,
        strip_accents=None,
        tokenize_chinese_chars=True,
        added_tokens=(),
        reason="",
        vocab=None,
        truncate="head",
    ):
        self.vocab_file, self.do_lower_case, self.reason = vocab_file, do_lower_case, reason
        self.added_tokens, self.truncate = tuple(added_tokens), truncate
        self.model_vocab = load_vocab(vocab_file) if vocab is None else vocab
        self.vocab = {**self.model_vocab, **{token.content: token.id for token in self.added_tokens}}
        self.inv_vocab = list_by_id(self.vocab)
        self.vocab_size = len(self.inv_vocab)
        self.basic_tokenizer = BasicTokenizer(do_lower_case, strip_accents, tokenize_chinese_chars)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.model_vocab)
        self.vocab_sha256 = hashlib.sha256(self._identity().encode("utf-8", "surrogatepass")).hexdigest()
        raw, normal = ([t for t in self.added_tokens if t.normalized is each] for each in (False, True))
        self._raw_finder = AddedTokenFinder(raw, prepare=str)
        self._finder = AddedTokenFinder(normal, prepare=self.basic_tokenizer.normalize)
        self._remembered = functools.lru_cache(CACHE_SIZE)(lambda part: tuple(self._work_out(part)))

    def vocab_text(self):
        """The content of a vocab.txt with this vocabulary, without the added tokens."""
        return "".join(f"{token}\n" for token in list_by_id(self.model_vocab))

    def _identity(self):
        basic, added = self.basic_tokenizer, [list(token) for token in self.added_tokens]
        unusual = [basic.strip_accents is not basic.do_lower_case, not basic.tokenize_chinese_chars, added]
        return self.vocab_text() + (json.dumps(unusual) if any(unusual) else "")

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
        if self.added_tokens:
            yield from self._ids_with_added(text)
            return
        for part in text.split(" "):  # a space parts words whatever stands beside it
            yield from (self._remembered if len(part) <= CACHED_CHARS else self._work_out)(part)

    def _work_out(self, part):
        return self._piece_ids(self.basic_tokenizer.tokenize(part))

    def _ids_with_added(self, text):
        """The same where tokens are added: these are found first, then the text between them is split."""
        for part, number in self._raw_finder.split(text):
            if number is not None:
                yield number
                continue
            for words, added in self._finder.split(self.basic_tokenizer.normalize(part)):
                yield from self._piece_ids(self.basic_tokenizer.split(words)) if added is None else [added]

    def _piece_ids(self, words):
        for word in words:
            for piece in self.wordpiece_tokenizer.tokenize(word):
                yield self.model_vocab[piece]


def tokenizer_for(model_dir, vocab_file=None, do_lower_case=None, truncate="head"):
    """The FullTokenizer of a model: vocabulary, case and added tokens by the rule of `data.wordpiece`.

    Args:
        model_dir: the model's folder.
        vocab_file: of the flag; None: the vocabulary in the folder.
        do_lower_case: of the flag; None: as the folder says.
        truncate: one of TRUNCATIONS.
    Raises:
        UserError: there is no vocabulary, it is broken, or the folder asks for tokens of another kind.
    """
    vocab_file = vocab_file or find_vocab_file(model_dir)
    vocab = load_vocab(vocab_file)
    settings = read_settings(model_dir, vocab_file, vocab, do_lower_case)
    return FullTokenizer(vocab_file, *settings, vocab, truncate)


def check_same_tokens(student, teacher):
    """Raises a UserError where the tokenizers of a student and its teacher do not give the same ids."""
    if (student.vocab_sha256, student.do_lower_case) == (teacher.vocab_sha256, teacher.do_lower_case):
        return
    cases = [json.dumps(tokenizer.do_lower_case) for tokenizer in (student, teacher)]
    where = first_difference(student.vocab, teacher.vocab)
    if not where and student.do_lower_case is not teacher.do_lower_case:
        where = f"lower-casing is {cases[0]} for the first and {cases[1]} for the second"
    where = where or "they split texts in other ways"
    raise UserError(
        f"{student.vocab_file} (the student) and {teacher.vocab_file} (the teacher) are two vocabularies: "
        f"{where}; both need the same one, since they read the same records: "
        "name a student of the teacher's vocabulary."
    )


def describe_tokenizer(tokenizer):
    """What a log says of a tokenizer: its vocabulary, its case and why, and whatever is unusual."""
    basic, added = tokenizer.basic_tokenizer, [token.content for token in tokenizer.added_tokens]
    facts = [
        f"vocabulary: {tokenizer.vocab_size} tokens of {tokenizer.vocab_file}",
        f"texts are {'' if tokenizer.do_lower_case else 'not '}lower-cased ({tokenizer.reason})",
    ]
    if basic.strip_accents is not basic.do_lower_case:
        facts.append(f"accents are {'stripped' if basic.strip_accents else 'kept'}")
    if not basic.tokenize_chinese_chars:
        facts.append("Chinese characters are not split")
    if added:
        facts.append(f"{len(added)} of the tokens added: {' '.join(added[:10])}{' ...' * (len(added) > 10)}")
    if holes := tokenizer.vocab_size - len(tokenizer.vocab):
        facts.append(f"{holes} ids without a token (empty lines, or tokens that come again later)")
    return ", ".join(facts)


# --------------------------------------------------------------------------------------- features


class Features(NamedTuple):
    """What BERT reads of an example, int32 arrays [T], T = seq_length."""

    input_ids: np.ndarray  # [CLS] a [SEP] or [CLS] a [SEP] b [SEP], then [PAD]
    input_mask: np.ndarray  # 1 for a token, 0 for padding
    segment_ids: np.ndarray  # 1 for b and the [SEP] after it, else 0
    was_cut: bool  # the text had more tokens than there was room for


def encode(tokenizer, text_a, text_b, seq_length):
    """Features of a text, or of a pair (text_b not None), whose longer text is cut first, as by `tokenizers`.

    A text without a single token gives [CLS] [SEP] alone.
    """
    room = seq_length - (2 if text_b is None else 3)
    if room < 1:
        raise UserError(
            f"--seq_length is {seq_length}, expected at least {seq_length - room + 1}: "
            "there is no room for text."
        )
    if text_b is None:
        a, was_cut = _cut(tokenizer.ids(text_a), room, tokenizer.truncate)
        return _assemble(tokenizer.vocab, a, None, seq_length, was_cut)
    a, b, was_cut = _cut_pair(tokenizer.ids(text_a), tokenizer.ids(text_b), room)
    return _assemble(tokenizer.vocab, a, b, seq_length, was_cut)


def _assemble(vocab, a, b, seq_length, was_cut):
    """Features of lists of ids that fit; b: None where there is no second text."""
    ids = [vocab["[CLS]"], *a, vocab["[SEP]"]]
    segment_1 = len(ids)
    if b is not None:
        ids += [*b, vocab["[SEP]"]]
    input_ids = np.full(seq_length, vocab["[PAD]"], np.int32)
    input_mask, segment_ids = np.zeros((2, seq_length), np.int32)
    input_ids[: len(ids)] = ids
    input_mask[: len(ids)] = 1
    segment_ids[segment_1 : len(ids)] = 1
    return Features(input_ids, input_mask, segment_ids, was_cut)


def _cut(ids, room, truncate):
    """(at most `room` of the ids of a text, a list; whether there were more).

    `ids` is an iterator, of which no more is worked out than is kept, unless the end of it is.
    """
    first = list(itertools.islice(ids, room + 1))
    was_cut = len(first) > room
    if was_cut and truncate == "head_tail":
        return head_and_tail(itertools.chain(first, ids), room), True
    return first[:room], was_cut


def head_and_tail(ids, room):
    """The first quarter of `room` ids and the last three, a list; all ids where there are no more.

    So are 128 and 382 of 510 tokens in Sun et al., arXiv 1905.05583, who found it best for reviews.
    """
    ids = iter(ids)
    head = list(itertools.islice(ids, room // 4))
    return head + list(collections.deque(ids, maxlen=room - room // 4))


def _cut_pair(ids_a, ids_b, room):
    """(the ids that are kept of the first text, those of the second, whether one was cut).

    Both are iterators, of which no more is worked out than is kept, unless it takes more to know which of
    the two texts is the longer.
    """
    a, b = list(itertools.islice(ids_a, room + 1)), list(itertools.islice(ids_b, room + 1))
    if len(a) + len(b) <= room:
        return a, b, False
    half = room // 2  # what b keeps at most where both are cut: of an odd room the longer text gets one more
    if not _is_longer(a, b, ids_a, ids_b, room):
        half = room - half
    keep_b = min(len(b), max(half, room - len(a)))
    return a[: room - keep_b], b[:keep_b], True


def _is_longer(a, b, rest_a, rest_b, room):
    """Whether the first text has more tokens. a, b: those worked out already; the rest is used up."""
    if len(a) <= room or len(b) <= room or room % 2 == 0:  # half is half
        return len(a) > len(b)
    for _ in rest_b:
        if next(rest_a, None) is None:
            return False
    return next(rest_a, None) is not None
