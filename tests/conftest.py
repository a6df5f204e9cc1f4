"""Puts the repository root on the path, and makes the tiny models and data that the tests share."""

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WORDS = ("the a it is was not very good great fine bad awful dull book plot film scene sound phone screen pan knife works broke love "
         "hate . , !").split()
TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32,
        "max_position_embeddings": 32}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random BERT of 4 layers, 16 wide, 4 heads, and a vocabulary of 40 tokens."""
    from modeling.bert import BertConfig
    from modeling.heads import DomainClassifier
    from modeling.bert import init_weights
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("tiny") / "bert"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [f"##{chr(97 + i)}" for i in range(TINY["vocab_size"] - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    config = BertConfig.from_dict({**BertConfig().to_dict(), **TINY})
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    model = DomainClassifier(config, 2, 4)
    init_weights(model, 0, 0.2)
    arrays = {name: parameter.numpy() for name, parameter in model.named_parameters() if name.startswith("bert.")}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data folder of the task senti: 60 reviews whose label a good or a bad word decides; 32, 12 and 16 of them in the splits."""
    folder = tmp_path_factory.mktemp("data") / "SENTI"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for split, count in (("train", 32), ("dev", 12), ("test", 16)):
        lines = ["review\tdomain\tsentiment"]
        for i in range(count):
            label = ("positive", "negative")[i % 2]
            mood = stream.choice(("good", "great", "fine", "love") if i % 2 == 0 else ("bad", "awful", "dull", "hate"))
            words = [*stream.choice(WORDS[:8], stream.integers(2, 12)), mood, *stream.choice(WORDS[13:24], stream.integers(1, 5))]
            lines.append("\t".join((" ".join(words), ("books", "dvd", "electronics", "kitchen")[i // 2 % 4], label)))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
