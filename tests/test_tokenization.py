"""tokenization.py: golden cases, encode, vocabularies, and parity with the tokenizers library.

Parity is tested where that library is installed.
"""

import collections
import itertools
import json
import os
import pathlib
import random
import re
import sys
import time
import unicodedata

import numpy as np
import pytest
from fuzz import WRONG, with_value

import tokenization
from data.wordpiece.added_tokens import BERT_TOKENS
from data.wordpiece.characters import has_visible, pieces_to_sort
from tokenization import (
    BasicTokenizer,
    FullTokenizer,
    WordpieceTokenizer,
    check_same_tokens,
    describe_tokenizer,
    encode,
    load_vocab,
    tokenizer_for,
)
from util import UserError, sha256

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the plot was un una ##able ##ab ##a ##b ##ff want ##ed a b . , ! [ ] sep cls mask".split()


def write_vocab(folder, tokens=WORDS, name="vocab.txt"):
    """Writes a vocabulary: the special tokens, then `tokens`."""
    path = pathlib.Path(folder, name)
    path.write_text("".join(token + "\n" for token in [*SPECIAL, *tokens]), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------- words

PUNCTUATION = "\u201ca\u201d\u2014b\u2026c\xbfd\u3001e\uff0cf\u203fg"
GOLDEN = [  # text, words uncased, words cased; from tokenizers 0.23.3
    ("", [], []),
    ("Don't stop!", ["don", "'", "t", "stop", "!"], ["Don", "'", "t", "stop", "!"]),
    ("a_b $5+1=6 ^`~", "a _ b $ 5 + 1 = 6 ^ ` ~".split(), "a _ b $ 5 + 1 = 6 ^ ` ~".split()),
    ("Caf\xe9 Cafe\u0301", ["cafe", "cafe"], ["Caf\xe9", "Cafe\u0301"]),
    ("\u0130stanbul \u0131", ["istanbul", "\u0131"], ["\u0130stanbul", "\u0131"]),
    ("Stra\xdfe \u1e9e", ["stra\xdfe", "\xdf"], ["Stra\xdfe", "\u1e9e"]),
    ("\u039f\u0394\u039f\u03a3", ["\u03bf\u03b4\u03bf\u03c3"], ["\u039f\u0394\u039f\u03a3"]),
    (
        "\u4f60\u597dA\u3042\u3044",
        ["\u4f60", "\u597d", "a\u3042\u3044"],
        ["\u4f60", "\u597d", "A\u3042\u3044"],
    ),
    ("\ud55c", ["\u1112\u1161\u11ab"], ["\ud55c"]),
    ("\uac00\u1100", ["\u1100\u1161\u1100"], ["\uac00\u1100"]),
    ("ok\U0001f600\ufe0f ok", ["ok\U0001f600", "ok"], ["ok\U0001f600\ufe0f", "ok"]),
    ("a\0b\ufffdc\x07d\x1ae\x7ff\x85g", ["abcdefg"], ["abcdefg"]),
    ("a\u200bb\u200dc\u200ed\ufeffe\xadf", ["abcdef"], ["abcdef"]),
    ("a\tb\nc\rd\xa0e\u2003f\u3000g\u2028h\u2029i\u1680j", list("abcdefghij"), list("abcdefghij")),
    ("a\x0bb\x0cc\x1cd", ["abcd"], ["abcd"]),
    (PUNCTUATION, list(PUNCTUATION), list(PUNCTUATION)),
    ("a\ue000b\uf8ff", ["ab"], ["ab"]),
    ("a\u2260b", ["a", "=", "b"], ["a\u2260b"]),
    ("\uff21\ufb01\u2163", ["\uff41\ufb01\u2173"], ["\uff21\ufb01\u2163"]),
    ("x\u0323\u0307 x\u0307\u0323", ["x", "x"], ["x\u0323\u0307", "x\u0307\u0323"]),
    ("a\u302e\u200d\U0001d165", ["a\U0001d165\u302e"], ["a\u302e\U0001d165"]),
    (
        "a\u2e43b a\u08d4b a\u166db",
        ["a\u2e43b", "a\u08d4b", "a", "\u166d", "b"],
        ["a\u2e43b", "a\u08d4b", "a", "\u166d", "b"],
    ),
    (
        "\U0002b820\U0002b91f\U0002b920",
        ["\U0002b820\U0002b91f", "\U0002b920"],
        ["\U0002b820\U0002b91f", "\U0002b920"],
    ),
]


@pytest.mark.parametrize("text, uncased, cased", GOLDEN, ids=[ascii(case[0]) for case in GOLDEN])
def test_words_are_those_of_the_golden_cases(text, uncased, cased):
    """Words are those of Hugging Face's tokenizer.

    Accents, scripts, control characters, whitespace, punctuation.
    """
    assert BasicTokenizer().tokenize(text) == uncased
    assert BasicTokenizer(do_lower_case=False).tokenize(text) == cased


def test_every_ascii_character_has_its_role():
    """Letters and digits stay in a word, and every other visible character stands alone.

    Whitespace parts words; the other control characters vanish.
    """
    for char in map(chr, range(128)):
        middle = (
            [f"a{char.lower()}b"] if char.isalnum() else ["a", "b"] if char in " \t\n\r" else ["a", char, "b"]
        )
        assert BasicTokenizer().tokenize(f"a{char}b") == (
            middle if char in " \t\n\r" or char.isprintable() else ["ab"]
        )


# --------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    "word, pieces",
    [
        ("unable", ["[UNK]"]),
        ("unaff", ["una", "##ff"]),
        ("unab", ["una", "##b"]),
        ("wanted", ["want", "##ed"]),
        ("thex", ["[UNK]"]),
        ("", []),
        (" the \n plot ", ["the", "plot"]),
    ],
)
def test_pieces_are_the_longest_that_fit(word, pieces):
    """The longest piece is taken, even where a shorter one would let the word be put together.

    Then the word is [UNK].
    """
    assert WordpieceTokenizer(dict.fromkeys(SPECIAL + WORDS)).tokenize(word) == pieces


def test_words_over_100_characters_are_unknown():
    """100 characters are put together, 101 are [UNK], and the limit can be set."""
    vocab = dict.fromkeys(SPECIAL + WORDS)
    assert WordpieceTokenizer(vocab).tokenize("a" * 100) == ["a"] + ["##a"] * 99
    assert WordpieceTokenizer(vocab).tokenize("a" * 101) == ["[UNK]"]
    assert WordpieceTokenizer(vocab, unk_token="?", max_input_chars_per_word=3).tokenize("aaa aaaa") == [
        "a",
        "##a",
        "##a",
        "?",
    ]


# --------------------------------------------------------------------------------------- the whole tokenizer


def test_tokens_and_ids_map_to_each_other(tmp_path):
    """A token's id is its line in the file, from 0, and the way back gives the token."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    tokens = tokenizer.tokenize("The plot was unaff, na!")
    assert tokens == ["the", "plot", "was", "una", "##ff", ",", "[UNK]", "!"]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert (
        ids
        == [(SPECIAL + WORDS).index(token) for token in tokens]
        == list(tokenizer.ids("The plot was unaff, na!"))
    )
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_only_whitespace_parts_words(tmp_path):
    """What Python's split takes for whitespace and BERT for control characters leaves a word whole."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    assert tokenizer.tokenize("wan\x1cted\x85  wan\x0cted\u3000wanted") == ["want", "##ed"] * 3


def test_special_tokens_in_a_text_are_text(tmp_path):
    """No text can forge a special token, in any case of letters."""
    for lower, expected in ((True, ["[", "sep", "]"]), (False, ["[", "[UNK]", "]"])):
        tokenizer = FullTokenizer(write_vocab(tmp_path), lower)
        for text in ("[SEP]", "x[SEP]x", "[CLS] [MASK] [PAD] [UNK]", "[sep]"):
            forged = {tokenizer.vocab[token] for token in SPECIAL} - {tokenizer.vocab["[UNK]"]}
            assert not forged & set(tokenizer.ids(text))
        assert tokenizer.tokenize("[SEP]") == expected


def test_cached_tokens_are_those_of_the_first_time(tmp_path):
    """The cache changes no token, is bounded, and cannot be spoilt through a list that was handed out."""
    tokenizer, fresh = FullTokenizer(write_vocab(tmp_path)), FullTokenizer(write_vocab(tmp_path))
    text = "The plot, unaff! " + "a" * 80 + " the" * 40
    first = tokenizer.tokenize(text)
    first.append("spoilt")
    assert tokenizer.tokenize(text) == fresh.tokenize(text) == first[:-1]
    for number in range(tokenization.CACHE_SIZE + 10):
        tokenizer.tokenize(str(number))
    assert tokenizer._remembered.cache_info().currsize == tokenization.CACHE_SIZE


# --------------------------------------------------------------------------------------- encode


def test_features_of_a_text(tmp_path):
    """[CLS] a [SEP], then [PAD] with mask 0; arrays of int32."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    features = encode(tokenizer, "The plot.", None, 8)
    assert (
        tokenizer.convert_ids_to_tokens(features.input_ids)
        == "[CLS] the plot . [SEP] [PAD] [PAD] [PAD]".split()
    )
    assert features.input_mask.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert features.segment_ids.tolist() == [0] * 8
    assert features.was_cut is False
    assert {array.dtype for array in features[:3]} == {np.dtype(np.int32)}


def test_features_of_a_pair(tmp_path):
    """[CLS] a [SEP] b [SEP]: segment 1 from the first token of b to the last [SEP]."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    features = encode(tokenizer, "the plot", "was", 8)
    assert (
        tokenizer.convert_ids_to_tokens(features.input_ids)
        == "[CLS] the plot [SEP] was [SEP] [PAD] [PAD]".split()
    )
    assert features.input_mask.tolist() == [1] * 6 + [0] * 2
    assert features.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_padding_is_the_pad_token_wherever_it_stands(tmp_path):
    """The ids of the special tokens are read from the vocabulary, not taken to be 0, 100, 101, 102."""
    path = tmp_path / "vocab.txt"
    path.write_text("the\n[SEP]\n[PAD]\n[CLS]\n[UNK]\n", encoding="utf-8")
    assert encode(FullTokenizer(path), "the x", None, 6).input_ids.tolist() == [3, 0, 4, 1, 2, 2]


@pytest.mark.parametrize("tokens, cut", [(0, False), (1, False), (6, False), (7, True), (500, True)])
def test_was_cut_tells_whether_tokens_were_lost(tmp_path, tokens, cut):
    """A text that just fits is not cut, one more token is; dropped characters at the end do not count."""
    features = encode(FullTokenizer(write_vocab(tmp_path)), "the " * tokens + " \u200b\0 ", None, 8)
    assert features.was_cut is cut
    assert features.input_mask.sum() == min(tokens, 6) + 2


def test_pairs_are_cut_as_by_the_library(tmp_path):
    """Pairs of all lengths at every seq_length get the ids and segments of transformers' library."""
    path = write_vocab(tmp_path)
    tokenizer, made = FullTokenizer(path), reference(path, True)
    made.post_processor = sys.modules["tokenizers"].processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    for seq_length in range(4, 12):
        made.enable_truncation(seq_length)
        for n, m in np.ndindex(14, 14):
            features, theirs = (
                encode(tokenizer, "a " * n, "b " * m, seq_length),
                made.encode("a " * n, "b " * m),
            )
            real = features.input_mask.sum()
            assert features.input_ids[:real].tolist() == theirs.ids, (seq_length, n, m)
            assert features.segment_ids[:real].tolist() == theirs.type_ids
            assert features.was_cut is (n + m > seq_length - 3)


def test_encoding_equals_cutting_all_the_tokens(tmp_path):
    """Stopping early gives the ids that tokenizing the whole text gives, at every seq_length."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    for text in ("The plot, unaff! Unab. " * 9, "the\nplot,unaff!" * 30, "\u4f60the" * 60):
        tokens = tokenizer.tokenize(text)
        for seq_length in range(3, 60):
            features = encode(tokenizer, text, None, seq_length)
            kept = ["[CLS]", *tokens[: seq_length - 2], "[SEP]"]
            assert tokenizer.convert_ids_to_tokens(features.input_ids[: features.input_mask.sum()]) == kept
            assert features.was_cut is (len(tokens) > seq_length - 2)


@pytest.mark.parametrize("space", [" ", ","])
def test_no_more_is_tokenized_than_is_kept(tmp_path, monkeypatch, space):
    """Words of a long text beyond seq_length never reach WordPiece, with or without blanks between."""
    tokenizer, words = FullTokenizer(write_vocab(tmp_path)), []
    pieces = tokenizer.wordpiece_tokenizer.tokenize
    monkeypatch.setattr(
        tokenizer.wordpiece_tokenizer, "tokenize", lambda word: words.append(word) or pieces(word)
    )
    assert encode(tokenizer, space.join(map(str, range(100_000))), None, 32).was_cut
    assert len(words) == 31


@pytest.mark.parametrize("texts, least", [(("the", None), 3), (("the", "plot"), 4)])
def test_a_length_without_room_for_text_is_refused(tmp_path, texts, least):
    """The shortest seq_length holds one token; below it the error names the flag."""
    tokenizer = FullTokenizer(write_vocab(tmp_path))
    assert encode(tokenizer, *texts, least).input_mask.all()
    with pytest.raises(UserError, match=f"--seq_length is {least - 1}, expected at least {least}"):
        encode(tokenizer, *texts, least - 1)


def test_a_text_is_empty_where_it_has_no_token(tmp_path):
    """For every character of Unicode alone, lower-cased and, but for accents, in its case."""
    lower, cased = (FullTokenizer(write_vocab(tmp_path), do_lower_case=case) for case in (True, False))
    for char in map(chr, range(sys.maxunicode + 1)):
        assert has_visible(char) == bool(lower.basic_tokenizer.tokenize(char)), hex(ord(char))
        if unicodedata.category(char) != "Mn":
            assert has_visible(char) == bool(cased.basic_tokenizer.tokenize(char)), hex(ord(char))


# --------------------------------------------------------------------------------------- vocabularies


def test_vocabulary_is_one_token_a_line(tmp_path):
    """A byte order mark, CRLF and a missing last newline change nothing.

    Other separators of Unicode are part of a token.
    """
    expected = {token: number for number, token in enumerate([*SPECIAL, "a\u2028b", "\x85", "\xa0"])}
    text = "\n".join(expected)
    for number, content in enumerate(
        (text, text + "\n", "\ufeff" + text, (text + "\n").replace("\n", "\r\n"))
    ):
        path = tmp_path / str(number)
        path.write_bytes(content.encode())
        assert load_vocab(path) == expected


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "vocab.txt:1: an empty file"),
        (b"[PAD]\nthe\n", r"vocab.txt: 2 lines, but no \[UNK\] \[CLS\] \[SEP\],.* is this a vocab.txt\?"),
        (b"[PAD]\n[UNK]\nna\xefve\n", r"vocab.txt:3: not UTF-8.* is this a vocab.txt\?"),
        ("[PAD]\n[UNK]\n".encode("utf-16"), "vocab.txt:1: not UTF-8"),
        ("[PAD]\n[UNK]\n".encode("utf-16-le"), r"but no \[PAD\] \[UNK\]"),
        (b"\n", "vocab.txt:1: an empty file"),
        (
            b'{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}',
            r"1 lines, but no \[PAD\]",
        ),  # tokenizer.json, or any other JSON
        (
            b"[PAD]\t0\n[UNK]\t1\n[CLS]\t2\n[SEP]\t3\n",
            r"4 lines, but no \[PAD\]",
        ),  # with scores or ids beside the tokens
        (b"<unk>\n<s>\n</s>\n", r"but no \[PAD\]"),  # of another kind of model
        (b"[pad]\n[unk]\n[cls]\n[sep]\n", r"but no \[PAD\]"),
        (b"[PAD] \n[UNK] \n[CLS] \n[SEP] \n", r"but no \[PAD\]"),
        (b"\x80\x04\x95pickle", "vocab.txt:1: not UTF-8"),
        (b"\0" * 1000, r"1 lines, but no \[PAD\]"),
        (b"x" * 10**6 + b"\n" + b"x" * 10**6 + b"\n", r"no \[PAD\]"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 231508\n",
            "Git LFS pointer.*git lfs pull",
        ),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path, content, message):
    """The error names the file, the line where there is one, and what is wrong."""
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_vocab(tmp_path / "vocab.txt")


def test_missing_vocabularies_are_refused(tmp_path):
    """A missing file, or a folder in its place, is named; in a model folder without one, the flag is."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: no such file"):
            tokenizer_for(tmp_path, path)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: no vocab.txt.*--vocab_file"):
        tokenizer_for(tmp_path)


def test_vocabulary_and_case_of_a_model_folder(tmp_path):
    """--vocab_file goes before the folder's vocab.txt.

    The case follows the model's configuration, then the vocabulary's.
    """
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model, other):
        folder.mkdir()
    inside, outside = write_vocab(model), write_vocab(other, ["x"])
    assert tokenizer_for(model).vocab_sha256 == sha256(inside)
    assert (
        tokenizer_for(model, outside).vocab_sha256
        == tokenizer_for(str(model), str(outside)).vocab_sha256
        == sha256(outside)
    )
    assert tokenizer_for(model, outside).do_lower_case is True
    (other / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokenizer_for(model, outside).do_lower_case is False
    assert tokenizer_for(model).do_lower_case is True
    (model / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "strip_accents": null, "model_max_length": 512}'
    )
    assert tokenizer_for(model, outside).basic_tokenizer.do_lower_case is True


@pytest.mark.parametrize(
    "setting",
    [
        {"do_lower_case": "yes"},
        {"do_lower_case": 1},
        {"do_lower_case": 0.0},
        {"do_lower_case": None},
        {"strip_accents": 1},
        {"never_split": {}},
        {"do_basic_tokenize": "x" * 10**5},
        {"never_split": ["x"]},
        {"tokenizer_class": "BertJapaneseTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"unk_token": "<unk>"},
        {"cls_token": {"content": "<s>", "lstrip": False}},
    ],
)
def test_settings_of_other_tokenizers_are_refused(tmp_path, setting):
    """A configuration that would give other tokens than ours is an error that names file and setting."""
    write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(setting))
    with pytest.raises(UserError, match=f"tokenizer_config.json: {list(setting)[-1]} is"):
        tokenizer_for(tmp_path)


def test_a_cased_vocabulary_keeps_the_case_of_texts(tmp_path):
    """Where no file says, a token with a capital letter does; the log names it; the flag goes before all."""
    write_vocab(tmp_path, ["Anna", "Smith", "anna"])
    tokenizer = tokenizer_for(tmp_path)
    assert tokenizer.tokenize("Anna Smith") == ["Anna", "Smith"]
    assert "not lower-cased (tokens such as 'Anna' have capital letters)" in describe_tokenizer(tokenizer)
    assert tokenizer_for(tmp_path, do_lower_case=True).tokenize("Anna Smith") == ["anna", "[UNK]"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokenizer_for(tmp_path).do_lower_case is True
    assert tokenizer_for(tmp_path, do_lower_case=False).tokenize("Anna") == ["Anna"]


def test_empty_lines_and_repeated_tokens_are_read_as_by_transformers(tmp_path):
    """An empty line takes an id, and of two lines with the same token the last counts.

    The log says how many ids have no token.
    """
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n\nplot\nthe\n\n")
    tokenizer = tokenizer_for(tmp_path)
    assert list(tokenizer.ids("the plot")) == [7, 6] and tokenizer.vocab_size == 8
    assert "2 ids without a token" in describe_tokenizer(tokenizer)


def test_the_hash_of_a_vocabulary_is_that_of_its_tokens(tmp_path):
    """CRLF, a byte order mark or no last newline keep the hash; another order of tokens does not."""
    texts = ["[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\nplot\n"]
    texts += [texts[0].replace("\n", "\r\n"), "\ufeff" + texts[0], texts[0][:-1]]
    hashes = []
    for number, text in enumerate([*texts, texts[0].replace("the\nplot", "plot\nthe")]):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text.encode())
        hashes.append(FullTokenizer(path).vocab_sha256)
    assert hashes[0] == sha256(tmp_path / "0.txt") and len(set(hashes[:4])) == 1 and hashes[4] != hashes[0]


def test_a_student_of_another_vocabulary_is_told_where_it_differs(tmp_path):
    """Both files, the first token that differs, or the case; CRLF is no difference."""
    (tmp_path / "crlf.txt").write_bytes(write_vocab(tmp_path).read_bytes().replace(b"\n", b"\r\n"))
    teacher = FullTokenizer(tmp_path / "vocab.txt")
    check_same_tokens(FullTokenizer(tmp_path / "crlf.txt"), teacher)
    other = FullTokenizer(write_vocab(tmp_path, ["the", "film", *WORDS[2:]], "other.txt"))
    with pytest.raises(
        UserError, match="other.txt.*vocab.txt.*id 6 is 'film'.*'plot'.*both need the same one"
    ):
        check_same_tokens(other, teacher)
    with pytest.raises(UserError, match="lower-casing is false for the first and true for the second"):
        check_same_tokens(FullTokenizer(tmp_path / "vocab.txt", False), teacher)


# --------------------------------------------------------------------------------------- tokenizer.json


def save_tokenizer(folder, lower=True, added=(), **settings):
    """Writes a folder with tokenizer.json alone, as the library saves it; returns the tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    made = reference(write_vocab(folder), lower)
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower, **settings)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_tokens(list(added))
    made.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    return made


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_parity_with_every_setting_of_a_tokenizer_json(tmp_path, lower, accents, chinese):
    """tokenizer.json alone gives the library's ids, whatever it says of case, accents and Chinese."""
    made = save_tokenizer(tmp_path, lower, strip_accents=accents, handle_chinese_chars=chinese)
    ours = tokenizer_for(tmp_path)
    for text in hard_texts(400, seed=3):
        assert list(ours.ids(text)) == made.encode(text, add_special_tokens=False).ids, ascii(text)


def test_vocabularies_that_differ_in_a_folder_are_refused(tmp_path):
    """vocab.txt beside a tokenizer.json of the same tokens is read.

    Beside one of other tokens it is refused with the first id that differs.
    """
    save_tokenizer(tmp_path)
    write_vocab(tmp_path)
    assert tokenizer_for(tmp_path).tokenize("The plot") == ["the", "plot"]
    write_vocab(tmp_path, ["the", "plott", *WORDS[2:]])
    with pytest.raises(UserError, match="two vocabularies in one folder.*id 6 is 'plott'.*'plot'"):
        tokenizer_for(tmp_path)


def test_files_that_contradict_each_other_on_the_case_are_refused(tmp_path):
    """The sentence names both files and the flag, which then decides."""
    save_tokenizer(tmp_path, lower=False)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(UserError, match="tokenizer_config.json.*tokenizer.json.*--do_lower_case"):
        tokenizer_for(tmp_path)
    assert tokenizer_for(tmp_path, do_lower_case=True).do_lower_case is True


@pytest.mark.parametrize(
    "keys, value",
    [
        (("model", "type"), "BPE"),
        (("model", "unk_token"), "<unk>"),
        (("model", "continuing_subword_prefix"), ""),
        (("model", "max_input_chars_per_word"), 200),
        (("model", "vocab"), {"[PAD]": 0, "[UNK]": 0}),
        (("model", "vocab"), {"[PAD]": 10**12}),
        (("normalizer", "type"), "Lowercase"),
        (("normalizer", "lowercase"), 1),
        (("normalizer", "clean_text"), False),
        (("normalizer",), None),
        (("pre_tokenizer", "type"), "Whitespace"),
        (("post_processor",), None),
        (("post_processor", "type"), "RobertaProcessing"),
        (("post_processor", "single"), []),
        (("added_tokens",), None),
    ],
)
def test_tokenizers_that_are_not_berts_are_refused(tmp_path, keys, value):
    """The sentence names the file and what is different."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(with_value(json.loads(path.read_text()), keys, value)))
    with pytest.raises(UserError, match=f"tokenizer.json: {keys[0]}"):
        tokenizer_for(tmp_path)


# --------------------------------------------------------------------------------------- added tokens

ADDED = ["<url>", "New York", "a\u4f60b", "\xc9t\xe9", "[E1]", "the"]
ADDED_TEXTS = [
    "see <url> now",
    "<URL><url>x<url>",
    "in new york, New  York and NEW YORK.",
    "a\u4f60b \xe9t\xe9 E\u0301te ete",
    "[E1] the plot [e1] other, the",
    "breathe the",
    "x [SEP] <url>",
]


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    "flags", [{}, {"normalized": False}, {"single_word": True}, {"lstrip": True, "rstrip": True}]
)
def test_parity_of_added_tokens(tmp_path, lower, flags):
    """Added tokens get the library's ids in each place of a text, with each of their flags."""
    tokenizers = pytest.importorskip("tokenizers")
    made = save_tokenizer(tmp_path, lower, [tokenizers.AddedToken(token, **flags) for token in ADDED])
    ours, draw = tokenizer_for(tmp_path), random.Random(0)
    pieces = [*ADDED, *ADDED_TEXTS, " ", "x", "_", "\u0301", ",", "\u24b6", "\u200d", "\xa0", "9"]
    mixed = ["".join(draw.choices(pieces, k=6)) for _ in range(500)]
    for text in [*ADDED_TEXTS, *mixed, *hard_texts(100, seed=4)]:
        assert list(ours.ids(text)) == made.encode(text, add_special_tokens=False).ids, ascii(text)


ENTRY = {
    "content": "<url>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
FORMS = {
    "added_tokens.json": {"<url>": 27},
    "tokenizer_config.json": {"added_tokens_decoder": {"27": ENTRY}},
    "special_tokens_map.json": {"additional_special_tokens": ["<url>"]},
}


@pytest.mark.parametrize("name", FORMS)
def test_added_tokens_of_every_file_are_honoured(tmp_path, name):
    """Each form in which transformers keeps an added token makes one id of it, and the log names it."""
    write_vocab(tmp_path)
    assert len(SPECIAL + WORDS) == 27
    (tmp_path / name).write_text(json.dumps(FORMS[name]))
    tokenizer = tokenizer_for(tmp_path, tmp_path / "vocab.txt")
    assert tokenizer.tokenize("the <url> plot") == ["the", "<url>", "plot"] and tokenizer.vocab["<url>"] == 27
    assert tokenizer.vocab_size == 28 and "1 of the tokens added: <url>" in describe_tokenizer(tokenizer)
    assert tokenizer.vocab_sha256 != sha256(tmp_path / "vocab.txt")
    assert tokenizer.vocab_text() == (tmp_path / "vocab.txt").read_text()


@pytest.mark.parametrize(
    "files, message",
    [
        ({"added_tokens.json": {"<url>": 30}}, "the added token '<url>' has the id 30, expected 27"),
        ({"added_tokens.json": {"the": 30}}, "the added token 'the' has the id 30, expected 5"),
        ({"added_tokens.json": {"<url>": "27"}}, "an added token is"),
        ({"added_tokens.json": {" ": 27}}, "an added token is"),
        ({"tokenizer_config.json": {"added_tokens_decoder": []}}, "added_tokens_decoder is not a map"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"27": {**ENTRY, "lstrip": 1}}}},
            "an added token is",
        ),
        ({**FORMS, "added_tokens.json": {"<url>": 28}}, "they differ on the added token '<url>'"),
    ],
)
def test_added_tokens_that_cannot_be_meant_are_refused(tmp_path, files, message):
    """A wrong id, a wrong kind, or two files that differ: the sentence names the file and the token."""
    write_vocab(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        tokenizer_for(tmp_path)


def test_special_tokens_stay_text_beside_added_ones(tmp_path):
    """A list of added tokens names BERT's own, too; in a text they are text all the same."""
    decoder = {str(number): {**ENTRY, "content": token} for number, token in enumerate(SPECIAL)}
    write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {**decoder, "27": ENTRY}})
    )
    tokenizer = tokenizer_for(tmp_path)
    assert tokenizer.tokenize("[SEP] <url>") == ["[", "sep", "]", "<url>"]
    assert [token.content for token in tokenizer.added_tokens] == ["<url>"] and set(SPECIAL) == set(
        BERT_TOKENS
    )


# --------------------------------------------------------------------------------------- parity

EXCEPTIONS = {
    "\U00011938"
}  # Python 3.9 and later decompose it, the tables of tokenizers do not; no vocabulary has it


def reference(vocab_file, lower):
    """BERT's tokenizer of the library `tokenizers`, which takes special tokens in a text for text."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(vocab_file), unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(SPECIAL)
    made.encode_special_tokens = True
    return made


@pytest.mark.parametrize("lower", [True, False])
def test_parity_on_every_character(tmp_path, lower):
    """Each character that Unicode assigns, between two letters, gives the words of the library."""
    made, ours = reference(write_vocab(tmp_path), lower), BasicTokenizer(lower)
    for first in range(0, 0x110000, 0x1000):
        text = "".join(f"\na{char}b" for char in assigned(first, first + 0x1000))
        theirs = made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text))
        assert ours.tokenize(text) == [word for word, _ in theirs], hex(first)


def assigned(first, end):
    """The characters of a range that are to be compared: those that Unicode assigns."""
    chars = (char for char in map(chr, range(first, end)) if char not in EXCEPTIONS)
    return [char for char in chars if unicodedata.category(char) not in ("Cn", "Cs")]


def hard_texts(count, seed):
    """Random texts where characters of many kinds meet.

    Whitespace, controls, accents, scripts, emoji, special tokens.
    """
    draw, known = random.Random(seed), assigned(0, 0x30000)
    scripts = (
        0x4E00,
        0x3000,
        0xAC00,
        0xF900,
        0x2F800,
    )  # Chinese, kana, Hangul, and two blocks that are decomposed to Chinese
    kinds = [
        list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
        list(" \t\n\r\xa0\u2003\u3000\u2028\u2029\x0b\x0c\x1c\x85"),
        [char for char in known if unicodedata.category(char) in ("Cc", "Cf", "Co")][:300]
        + ["\0", "\ufffd", "\ufffe"],
        [char for char in known if unicodedata.category(char) in ("Mn", "Mc", "Me")],
        [char for char in known if unicodedata.category(char)[0] in "PS"],
        [char for char in known if unicodedata.decomposition(char)],
        list(
            "\u0130\u0131\xdf\u1e9e\u03a3\u03c3\u03c2\ufb01\u01c5\u212a\u2126\u1100\u1161\u11a8\uac00\uac01"
        ),
        [char for first in scripts for char in assigned(first, first + 0x100)],
        list(map(chr, [*range(0x1F600, 0x1F650), 0x1F3FD, 0xFE0F, 0x200D, 0x20E3, 0x1F1E6, 0x1F1E7])),
        [
            *SPECIAL,
            "[sep]",
            "[ SEP ]",
            "##a",
            "a" * 99,
            "a" * 100,
            "b" * 101,
            "\xe9" * 100,
            "e\u0301" * 100,
            "e\u0301" * 101,
        ],
        known,
    ]
    for _ in range(count):
        yield "".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(120)))


@pytest.mark.parametrize("lower", [True, False])
def test_parity_on_hard_texts(tmp_path, lower):
    """Characters of all kinds side by side give the library's tokens and ids, known words or not."""
    texts = list(hard_texts(1500, seed=1))
    chars = sorted({char for text in texts for word in BasicTokenizer(lower).tokenize(text) for char in word})
    vocab = write_vocab(
        tmp_path, dict.fromkeys([*WORDS, *chars[::2], *("##" + char for char in [*chars[::3], *"abc"])])
    )
    made, ours = reference(vocab, lower), FullTokenizer(vocab, lower)
    for text in texts:
        theirs = made.encode(text, add_special_tokens=False)
        assert ours.tokenize(text) == theirs.tokens
        assert list(ours.ids(text)) == theirs.ids


def test_parity_with_transformers_on_real_reviews():
    """Every Amazon review and hard text has Hugging Face's ids and features with a real vocabulary.

    Hardly any id is [UNK].
    """
    folders = [os.environ.get(name) for name in ("METAKD_MODEL_DIR", "METAKD_AMAZON_DIR")]
    if not all(folders):
        pytest.skip("METAKD_MODEL_DIR (with vocab.txt) and METAKD_AMAZON_DIR (sorted_data_acl) are not set")
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.BertTokenizerFast.from_pretrained(folders[0]), tokenizer_for(folders[0])
    assert len(theirs) == len(ours.vocab) == 30522
    files = sorted(pathlib.Path(folders[1]).rglob("*.review"))
    raw = [
        text
        for file in files
        for text in re.findall(rb"<review_text>\n?(.*?)\n?</review_text>", file.read_bytes(), re.S)
    ]
    reviews = [text.decode("utf-8") for text in raw]
    assert len(reviews) == 8000
    for text in [*reviews, *hard_texts(2000, seed=2)]:
        assert (
            list(ours.ids(text))
            == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ), ascii(text)
    for text in reviews:
        features, expected = (
            encode(ours, text, None, 128),
            theirs(text, truncation=True, max_length=128, padding="max_length"),
        )
        assert features.input_ids.tolist() == expected["input_ids"], text
        assert features.input_mask.tolist() == expected["attention_mask"], text
    tokens = collections.Counter(token for text in reviews for token in ours.tokenize(text))
    assert tokens["[UNK]"] < 0.001 * sum(tokens.values())


def test_wrong_values_of_every_setting(tmp_path):
    """Any wrong value of any setting in tokenizer_config.json is told on one line or changes no token.

    The case stays a bool.
    """
    good = {
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "do_basic_tokenize": True,
        "never_split": None,
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 512,
    }
    write_vocab(tmp_path)
    for key in good:
        for wrong in (*WRONG, KeyError):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(with_value(good, (key,), wrong)))
            try:
                assert type(tokenizer_for(tmp_path).do_lower_case) is bool
            except UserError as error:
                named = (
                    "not valid JSON"
                    if wrong == "\ud800" or isinstance(wrong, float) and not np.isfinite(wrong)
                    else key
                )
                assert named in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 500


@pytest.mark.parametrize("accents", ["\u0316\u0300", "\u0300\u0316", "\u08e3\u08d4", "\u1e69\u0327\u0323"])
def test_a_text_of_nothing_but_accents_takes_no_longer_than_another(accents):
    """A text of accents takes time in proportion to their number, so that none hangs a run.

    Sorting them in one piece takes the square of it.
    """
    started = time.process_time()
    BasicTokenizer().tokenize("a" + accents * (60_000 // len(accents)) + "b")
    assert (
        time.process_time() - started < 1
    )  # in one piece: 3 seconds, and a quarter of an hour for a million


def test_accents_are_sorted_as_in_one_piece():
    """A long text is decomposed in pieces; where they end makes no difference to what comes out."""
    for size in range(250, 260):
        text = (
            "".join(itertools.islice(itertools.cycle("a\u08d4\u08e3\u0323\u0307\u1e69x"), size))
            + "a\u08d4\u08e3b" * 200
        )
        whole = unicodedata.normalize("NFD", text)
        assert "".join(unicodedata.normalize("NFD", piece) for piece in pieces_to_sort(text)) == whole
