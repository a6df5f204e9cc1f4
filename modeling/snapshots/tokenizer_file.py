"""The tokenizer's files in a model folder that we write, as `tokenizers` and transformers read them."""

from data.store.files import write_json
from data.wordpiece.added_tokens import BERT_TOKENS, AddedToken


def save_tokenizer_files(folder, tokenizer, seq_length):
    """Writes vocab.txt, tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        tokenizer: a FullTokenizer.
        seq_length: tokens of the longest trained text.
    """
    (folder / "vocab.txt").write_text(tokenizer.vocab_text(), encoding="utf-8", newline="\n")
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer, seq_length))
    basic, lower = tokenizer.basic_tokenizer, tokenizer.do_lower_case
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": seq_length}
    if basic.strip_accents is not lower:
        config["strip_accents"] = basic.strip_accents
    if not basic.tokenize_chinese_chars:
        config["tokenize_chinese_chars"] = False
    write_json(folder / "tokenizer_config.json", config)


def tokenizer_json(tokenizer, seq_length):
    """What `tokenizers` itself would save for this vocabulary and case, cut at `seq_length` tokens.

    A server that reads this file alone cuts and splits texts as the model was trained.
    """
    vocab, basic = tokenizer.model_vocab, tokenizer.basic_tokenizer
    own = [AddedToken(token, vocab[token], False, special=True) for token in BERT_TOKENS if token in vocab]
    added = sorted([*own, *tokenizer.added_tokens], key=lambda token: token.id)
    truncation = {"direction": "Right", "max_length": seq_length, "strategy": "LongestFirst", "stride": 0}
    return {
        "version": "1.0",
        "truncation": truncation,
        "padding": None,
        "added_tokens": [token._asdict() for token in added],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": basic.tokenize_chinese_chars,
            "strip_accents": None if basic.strip_accents is basic.do_lower_case else basic.strip_accents,
            "lowercase": basic.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(vocab),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": tokenizer.wordpiece_tokenizer.max_input_chars_per_word,
            "vocab": vocab,
        },
    }


def _template(vocab):
    """[CLS] A [SEP] and [CLS] A [SEP] B [SEP], the segment of the second text being 1."""

    def special(token, segment):
        return {"SpecialToken": {"id": token, "type_id": segment}}

    def text(name, segment):
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]
    tokens = {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special("[SEP]", 1)],
        "special_tokens": tokens,
    }
