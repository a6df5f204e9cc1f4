"""Lines of text -> blocks of features, in order and on all cores:
the same arrays however many processes work.
"""

import collections
import concurrent.futures.process
import itertools
import multiprocessing
import os
import signal

import numpy as np

from data.lines import EmptyText
from tokenization import encode
from util import UserError, stop_with_parent

TOKENS = ("input_ids", "input_mask", "segment_ids")
TOLD = 100  # lines that are told at once
WORTH_A_PROCESS = 8  # blocks to a worker process, below which starting it costs more than it saves
_work = None  # in a worker process: what takes a list of rows to a block


def encode_rows(rows, parse, tokenizer, seq_length, size):
    """Yields blocks of up to `size` rows, in their order.

    Args:
        rows: an iterable of (line, bytes).
        parse: takes (line, bytes) to (text, second text or None, domain, label); it may raise a UserError,
            and raises an EmptyText for a text without a visible character.
    Returns (yields):
        {input_ids, input_mask, segment_ids: int32 [n, T]; domain, label, idxs: int32 [n]; was_cut: bool [n]},
        idxs counted from 0.
    Raises:
        EmptyText: lines without a visible character, all of them in one sentence, once the file is read.
    """

    def work(chunk):
        examples, empty = _encode_chunk(chunk, parse, tokenizer, seq_length)
        return (None if empty else _stack(*zip(*examples))), empty

    start, empty = 0, []
    try:
        for block, found in _map_in_order(work, _chunks(rows, size)):
            empty += found
            if not empty:
                n = len(block["label"])
                yield {**block, "idxs": np.arange(start, start + n, dtype=np.int32)}
                start += n
    except UserError:
        if not empty:
            raise
    if empty:
        raise EmptyText(_empty_sentence(empty))


def _encode_chunk(chunk, parse, tokenizer, seq_length):
    """[(Features, domain, label)] of some rows, and [(line, sentence)] of those that are empty.

    The rows end before the first other fault behind an empty one.
    """
    examples, empty = [], []
    for line, raw in chunk:
        try:
            text_a, text_b, domain, label = parse(line, raw)
            examples.append((encode(tokenizer, text_a, text_b, seq_length), domain, label))
        except EmptyText as fault:
            empty.append((line, str(fault)))
        except UserError:
            if not empty:
                raise
            break
    return examples, empty


def _stack(features, domains, labels):
    block = {name: np.stack([getattr(each, name) for each in features]) for name in TOKENS}
    block["domain"] = np.array(domains, np.int32)
    block["label"] = np.array(labels, np.int32)
    block["was_cut"] = np.array([each.was_cut for each in features])
    return block


def _empty_sentence(empty):
    """One sentence for all of [(line, sentence)]."""
    (_, sentence), *others = empty
    if not others:
        return sentence
    lines = ", ".join(str(line) for line, _ in others[:TOLD]) + ", ..." * (len(others) > TOLD)
    return f"{sentence.removesuffix('.')}; the same in {len(others)} more line(s): {lines}."


def _chunks(rows, size):
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _map_in_order(work, chunks):
    """`work(chunk)` of each chunk, in their order: in worker processes where there are many. A fault of an
    earlier chunk comes first.
    """
    workers = len(os.sched_getaffinity(0))
    first = list(itertools.islice(chunks, WORTH_A_PROCESS))
    chunks = itertools.chain(first, chunks)
    if workers == 1 or len(first) < WORTH_A_PROCESS:
        yield from map(work, chunks)
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _begin_worker, (work, os.getpid())
    ) as pool:
        waiting = collections.deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_run, chunk))
                if len(waiting) > 2 * workers:  # what is done lies in memory until it is asked for
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a process that turns text into tokens was killed, perhaps for want of memory: run it again, "
                "or on fewer cores (taskset)."
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _begin_worker(work, parent):
    """In a worker process, a copy of this one: it is told to stop by its parent alone,
    and does not outlive it.
    """
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop_with_parent(signal.SIGKILL, parent)


def _run(chunk):
    return _work(chunk)
