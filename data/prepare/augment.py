"""Makes texts without labels out of the training texts, for --unlabelled_file of stages 3 and 4.

    python3 -m data.prepare.augment --task_name senti --data_dir data/SENTI --model_load_dir models/MiniLM \\
        --output_file output/augmented.tsv --copies 4

A student learns more from its teacher when it sees more texts. Where there are no others, these are made up:
words are replaced by neighbours among the model's own word vectors, words are left out, and texts of several
sentences are recombined within a domain and a class. The idea is TinyBERT's (Jiao et al., Findings of EMNLP
2020, section 3.2), without its GloVe vectors and its masked language model. Dev and test are never read. The
file is a function of the seed.
"""

import config  # isort: skip  (first: it says what is not installed)

import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from config import count, module_parser, natural, options, share
from data.selection import Selection, select
from data.store.files import atomic_file
from data.tasks import SPLITS, Example, Task, clean, load_task, read_examples, split_path
from data.wordpiece.characters import has_visible
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.weights import WEIGHTS, read_weights
from tokenization import tokenizer_for
from util import UserError, entry, random_stream

NEIGHBOURS = 15  # candidates for the place of a word, as in TinyBERT
WORD_VECTORS = "bert.embeddings.word_embeddings.weight"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
LETTERS = re.compile(r"(\W*)(\w+)(\W*)")  # a word between its punctuation marks


class Rates(NamedTuple):
    """How often something happens to a text: shares of its words, and of the texts."""

    replace: float  # of the words that have neighbours
    drop: float  # of the words
    recombine: float  # of the texts with several sentences


# --------------------------------------------------------------------------------------- neighbours


def read_word_vectors(folder: pathlib.Path) -> np.ndarray:
    """The word vectors of a model folder, float32 [V, H], from one file or from shards.

    Raises:
        UserError: there are no weights, or no word vectors of BERT among them.
    """
    if not any((folder / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        raise UserError(
            f"{folder / WEIGHTS}: missing, expected the weights of the model: check --model_load_dir."
        )
    arrays = read_weights(folder).arrays
    if WORD_VECTORS not in arrays:
        raise UserError(f"{folder}: has no {WORD_VECTORS}, expected the weights of a BERT model.")
    return arrays[WORD_VECTORS]


class Neighbours:
    """The words whose vectors are nearest to a word's, by cosine, among the whole words of a vocabulary.

    A whole word is a token of letters alone that is no continuation (`##ing`) and at least two letters long.

    Args:
        vectors: float [V, H]; tokens: the vocabulary, token number i at place i, "" where there is none.
    """

    def __init__(self, vectors: np.ndarray, tokens: list):
        known = [i for i, token in enumerate(tokens[: len(vectors)]) if len(token) > 1 and token.isalpha()]
        self.words = [tokens[i] for i in known]
        self.places = {word: place for place, word in enumerate(self.words)}
        chosen = vectors[known]  # [N, H]
        lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
        self.directions = chosen / np.maximum(lengths, 1e-12)  # [N, H]
        self._found = {}

    def find(self, word: str) -> list:
        """Up to NEIGHBOURS words, the nearest first; none for what is no whole word of the vocabulary."""
        place = self.places.get(word)
        if place is None:
            return []
        if word not in self._found:
            similarity = self.directions @ self.directions[place]  # [N]
            similarity[place] = -np.inf
            nearest = np.argpartition(-similarity, min(NEIGHBOURS, len(similarity) - 1))[:NEIGHBOURS]
            nearest = nearest[np.argsort(-similarity[nearest], kind="stable")]
            self._found[word] = [self.words[i] for i in nearest if np.isfinite(similarity[i])]
        return self._found[word]


# --------------------------------------------------------------------------------------- one text


def alter_words(text: str, rates: Rates, neighbours: Neighbours, lower: bool, stream) -> str:
    """The text with some words replaced by a neighbour and some left out; never without any word."""
    words, kept = text.split(), []
    draws = stream.random((len(words), 2))  # of each word: left out?, replaced?
    for word, (drop, replace) in zip(words, draws):
        if drop < rates.drop:
            continue
        kept.append(replace_word(word, neighbours, lower, stream) if replace < rates.replace else word)
    return " ".join(kept or words)


def replace_word(word: str, neighbours: Neighbours, lower: bool, stream) -> str:
    """A neighbour of the word, with its punctuation around it; the word itself where it has none."""
    found = LETTERS.fullmatch(word)
    candidates = neighbours.find(found[2].lower() if lower else found[2]) if found else []
    if not candidates:
        return word
    return found[1] + candidates[stream.integers(len(candidates))] + found[3]


def recombine(text: str, other: str, stream) -> str:
    """As many sentences as `text` has, each drawn from `text` or from `other`, in an order of their own."""
    own, more = SENTENCE_END.split(text), SENTENCE_END.split(other)
    pool = [*own, *more]
    chosen = np.sort(stream.permutation(len(pool))[: len(own)])
    return " ".join(pool[i] for i in chosen)


# --------------------------------------------------------------------------------------- all texts


def augment(examples: list, copies: int, rates: Rates, neighbours: Neighbours, lower: bool, seed: int):
    """Yields (texts, domain) of `copies` altered versions of each example,
    those that equal a training text, or have lost all that is visible, left out.

    Each version is a function of (seed, place of the example, number of the version). Of a pair both texts
    are altered, and none is recombined: its label hangs on both.
    """
    alike = {}  # (domain, label): the examples of that cell
    for example in examples:
        alike.setdefault((example.domain, example.label), []).append(example)
    seen = {texts_of_example(example) for example in examples}
    for number in range(copies):
        for place, example in enumerate(examples):
            stream = random_stream(seed, "augmentation", place, number)
            texts = texts_of_example(example)
            if len(texts) == 1 and stream.random() < rates.recombine:
                cell = alike[example.domain, example.label]
                texts = (recombine(texts[0], cell[stream.integers(len(cell))].text_a, stream),)
            texts = tuple(clean(alter_words(text, rates, neighbours, lower, stream)) for text in texts)
            if texts not in seen and all(map(has_visible, texts)):
                seen.add(texts)
                yield texts, example.domain


def texts_of_example(example: Example) -> tuple:
    return (example.text_a,) if example.text_b is None else (example.text_a, example.text_b)


def choose_examples(task: Task, data_dir: str, selection: Selection) -> list:
    """The training examples that the selection flags choose, as stages 1, 2 and 4 choose them."""
    examples = list(read_examples(task, split_path(data_dir, "train")))
    domain, label = (np.array([getattr(each, name) for each in examples]) for name in ("domain", "label"))
    return [examples[row] for row in select(domain, label, task, selection)]


# --------------------------------------------------------------------------------------- the command


def check_output(path: str, data_dir: str) -> None:
    """Raises a UserError where the output would take the place of a split of the task, or has no folder."""
    if os.path.realpath(path) in [os.path.realpath(split_path(data_dir, split)) for split in SPLITS]:
        raise UserError(
            f"--output_file {path}: this is a split of the task, which would be overwritten: name another."
        )
    if not (folder := pathlib.Path(path).parent).is_dir():
        raise UserError(f"--output_file {path}: there is no folder {folder}: make it, or name another.")


def write_texts(path: str, task: Task, rows) -> int:
    """Writes an --unlabelled_file with the text columns and the domain; returns the number of its texts.

    Raises:
        UserError: there are none; what stands at `path` stays.
    """
    written = 0
    with atomic_file(path, "w") as file:
        file.write("\t".join((*task.text, task.domain)) + "\n")
        for texts, domain in rows:
            file.write("\t".join((*texts, task.domains[domain])) + "\n")
            written += 1
        if not written:
            raise UserError(
                f"--output_file {path}: no version of a text differs from all training texts, so there is "
                "nothing to write: raise --replace, --drop or --recombine. (Words are what stands between "
                "blanks; those of a language that is written without them are not altered.)"
            )
    return written


def make_parser():
    parser = module_parser(__doc__, "data.prepare.augment")
    add = parser.add_argument
    add("--task_name", required=True, help="name of the task")
    add("--data_dir", required=True, help="folder with train.tsv, the only file of texts that is read")
    add("--model_load_dir", required=True, help="model or run folder whose word vectors are taken")
    add("--vocab_file", help="its vocabulary (default: the one in the folder)")
    add("--output_file", required=True, help="the TSV to write, for --unlabelled_file")
    add("--copies", type=count, default=4, help="versions of each training text (default: %(default)s)")
    add("--replace", type=share, default=0.3, help="share of words replaced (default: %(default)s)")
    add("--drop", type=share, default=0.1, help="share of words left out (default: %(default)s)")
    add(
        "--recombine",
        type=share,
        default=0.3,
        help="share of texts with sentences of two (default: %(default)s)",
    )
    add("--seed", type=natural, default=42, help="every draw is a function of it (default: %(default)s)")
    config.selection(parser)
    return parser


@entry
def main():
    args = make_parser().parse_args()
    task = load_task(args.task_name, args.data_dir)
    check_output(args.output_file, args.data_dir)
    examples = choose_examples(task, args.data_dir, options(Selection, args))
    model = find_snapshot(args.model_load_dir)
    tokenizer = tokenizer_for(model, args.vocab_file)
    neighbours = Neighbours(read_word_vectors(model), tokenizer.inv_vocab)
    rates = Rates(args.replace, args.drop, args.recombine)
    rows = augment(examples, args.copies, rates, neighbours, tokenizer.do_lower_case, args.seed)
    written = write_texts(args.output_file, task, rows)
    print(f"{args.output_file}: {written} texts made of {len(examples)} training texts")


if __name__ == "__main__":
    main()
