"""tokenizer.json and tokenizer_config.json of a snapshot: WordPiece as the `tokenizers` library and transformers read it."""

from util import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of which a vocabulary may lack the last


def save_tokenizer_files(folder, tokenizer, seq_length):
    """Writes both files into `folder`. Args: tokenizer: a FullTokenizer; seq_length: tokens of the longest trained text."""
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer, seq_length))
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.do_lower_case,
        "model_max_length": seq_length,
    }
    write_json(folder / "tokenizer_config.json", config)


def tokenizer_json(tokenizer, seq_length):
    """What the `tokenizers` library itself would save for this vocabulary and case, cut at `seq_length` tokens.

    A server that reads this file alone cuts and splits texts as the model was trained.
    """
    vocab = tokenizer.vocab
    truncation = {"direction": "Right", "max_length": seq_length, "strategy": "LongestFirst", "stride": 0}
    return {
        "version": "1.0",
        "truncation": truncation,
        "padding": None,
        "added_tokens": [_added(token, vocab[token]) for token in SPECIAL if token in vocab],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,  # as lowercase says
            "lowercase": tokenizer.do_lower_case,
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


def _added(token, number):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


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
