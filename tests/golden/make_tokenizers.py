#!/usr/bin/env python3
"""Writes tokenizers/*.json: small tokenizers of every kind, trained by the tokenizers package on a
few sentences, and what that package makes of some texts with them. Needs tokenizers 0.23.

    python make_tokenizers.py [folder]

Each file has "tokenizer" (a tokenizer.json) and "texts": of each text the ids and the offsets in
bytes, special tokens added and parsed, the ids without either (null where the package makes special
tokens of plain text, which libmoenn does not), and the texts of the ids without and with special
tokens.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import tokenizer_cases as cases  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent / "tokenizers")
SENTENCES = ["The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
             "def main():\n    return [x ** 2 for x in range(10)]\n", *cases.LANGUAGES]
KINDS = ["gpt2", "roberta", "llama3", "qwen2", "o200k", "tekken", "deepseek_v3", "llama2",
         "llama2 legacy", "llama2 unfused", "unigram bytes", "bert", "clip", "prefixed bpe",
         "word level", "split merged_with_next"]
TEXTS = [
    "", " ", "  \n", "The quick  brown fox's 1234567 dogs.", "DON'T İ",
    " naïve e\u0301 ﬁ A\u030a\u0323", "中文 です 안녕 각", "😀👍🏽 a\u200db",
    "x <|endoftext|>  LSTRIP RSTRIP  y single singles myadded", "<s> </s> [MASK] <0x41> ▁x",
    "def f(x):\r\n\t\treturn x != 'a'//\n\n", "\x00\x01\x7f\u2028\u3000z",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "²³Ⅳ ʰ ﷺ ℃"
]


def size(trainer, **options):
    """Trainers make vocabularies of 400 tokens at most."""
    return lambda **asked: trainer(**{**asked, **options})


def byte_offsets(text, offsets):
    ends = [0]
    for character in text:
        ends.append(ends[-1] + len(character.encode()))
    return [[ends[begin], ends[end]] for begin, end in offsets]


def describe(tokenizer, text):
    encoded = tokenizer.encode(text)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    ids = encoded.ids
    without = plain.encode(text, add_special_tokens=False)
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return {"text": text, "ids": ids, "offsets": byte_offsets(text, encoded.offsets),
            "plain": None if special.intersection(without.ids) else without.ids,
            "decoded": tokenizer.decode(ids) if ids else "",
            "special": tokenizer.decode(ids, skip_special_tokens=False) if ids else ""}


cases.corpus = lambda: SENTENCES * 3
for name in ("BpeTrainer", "UnigramTrainer", "WordPieceTrainer", "WordLevelTrainer"):
    small = 320 if name == "BpeTrainer" else 380 if name == "UnigramTrainer" else 250
    setattr(cases.trainers, name, size(getattr(cases.trainers, name), vocab_size=small))
FOLDER.mkdir(exist_ok=True)
for kind in KINDS:
    tokenizer = cases.KINDS[kind]()
    content = {"tokenizer": json.loads(tokenizer.to_str()),
               "texts": [describe(tokenizer, text) for text in TEXTS]}
    path = FOLDER / f"{kind.replace(' ', '-')}.json"
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n",
                    encoding="utf-8")
