"""Encoding speed beside the tokenizers package, both on one thread of one process, by turns.

    measure_tokenizers.py [--text FILE] [--code FILE] [NAME...]    those of tokenizer_cases.py

Without files: this repository's documents and C sources, repeated to 10 MB. Encoded by pieces of 8
KiB, as documents come; the better of three rounds of each. The package goes by the faster of its
ways, without offsets.
"""

import argparse
import os
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import moenn  # noqa: E402
import tokenizer_cases as cases  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

BYTES, PIECE, ROUNDS = 10_000_000, 8192, 3


def pieces(path: str, pattern: str) -> list[str]:
    files = [Path(path)] if path else sorted(cases.ROOT.glob(pattern))
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    text = (text * (BYTES // len(text) + 1))[:BYTES]
    return [text[at:at + PIECE] for at in range(0, len(text), PIECE)]


def seconds(run) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(theirs: Tokenizer, ours: moenn.Tokenizer, texts: list[str]) -> tuple[float, float]:
    """MB/s of both. The package takes a tenth of the texts, for its time."""
    some, data = texts[::10], [text.encode() for text in texts]
    best = {"ours": 1e9, "theirs": 1e9}
    for _ in range(ROUNDS):
        best["ours"] = min(best["ours"], seconds(lambda: [ours.encode(text) for text in data]))
        best["theirs"] = min(best["theirs"], seconds(
            lambda: theirs.encode_batch_fast(some, add_special_tokens=False)))
    total, part = sum(map(len, data)), sum(len(text.encode()) for text in some)
    return total / best["ours"] / 1e6, part / best["theirs"] / 1e6


parser = argparse.ArgumentParser()
parser.add_argument("--text", default="")
parser.add_argument("--code", default="")
parser.add_argument("names", nargs="*")
asked = parser.parse_args()
print(f"{'tokenizer':16} {'text':8} {'libmoenn':>10} {'package':>10} {'ratio':>6}")
for name in asked.names or [
        "gpt2", "llama3", "qwen2", "o200k", "deepseek_v3", "llama2", "t5", "bert"
]:
    content = cases.KINDS[name]()
    content.save(path := f"{os.environ.get('TMPDIR', '/tmp')}/measured-{os.getpid()}.json")
    with moenn.Tokenizer.load(path) as tokenizer:
        for kind, texts in (("English", pieces(asked.text, "docs/*.md")),
                            ("code", pieces(asked.code, "lib/**/*.c"))):
            here, there = measure(content, tokenizer, texts)
            print(f"{name:16} {kind:8} {here:8.1f} MB/s {there:6.2f} MB/s {here / there:6.1f}",
                  flush=True)
    os.remove(path)
