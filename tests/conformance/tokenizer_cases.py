"""Tokenizers of every kind that checkpoints come with, small ones, trained here by the tokenizers
package; and the strings that they are compared on.
"""
import argparse
import doctest
import functools
import inspect
import io
import json
import random
import textwrap
import unicodedata
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

ROOT = Path(__file__).resolve().parents[2]

# ---- patterns, as published ----------------------------------------------------------------------

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|%s|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = WORDS % (CONTRACTIONS + "?", CONTRACTIONS + "?", r"\p{N}{1,3}")
TEKKEN = WORDS % ("", "", r"\p{N}")
DEEPSEEK_V3 = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
               r"""[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
               r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
DEEPSEEK_V2 = (r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
               r"\s+$", "[一-龥ࠀ-一가-퟿]+")
CLIP = r"<\|startoftext\|>|'s|'t|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

# ---- text ----------------------------------------------------------------------------------------

LANGUAGES = (
    "Привет, мир! Как дела? Это строка для обучения.", "你好，世界。今天天气怎么样？我们训练一个分词器。",
    "こんにちは世界。カタカナとひらがな。", "안녕하세요 세계. 오늘 날씨가 어떻습니까?",
    "مرحبا بالعالم. كيف حالك اليوم؟", "नमस्ते दुनिया। आप कैसे हैं?", "Ελληνικό κείμενο για δοκιμή",
    "Ünïcödé tèxt with àccents, naïve café résumé Zürich Łódź", "עברית טקסט לבדיקה", "ข้อความทดสอบ",
    "Việt Nam tiếng Việt", "😀 😂 🤣 👨‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 emoji")
WORDS_APART = (
    "Hello", " world", "the", "The", "  ", "\n\n", "don't", "I'LL", "we've", "myadded", "LSTRIP",
    "RSTRIP", "single", "Ünorm", "ünorm", "<|endoftext|>", "<|im_start|>", "<s>", "</s>", "<unk>",
    "[MASK]", "[SEP]", "def f(x):\n    return x+1\n", "http://example.com/a?b=c", "1234567",
    "3.14", "naïve", "e\u0301", "A\u030a", "ﬁ", "ΟΔΥΣΣΕΥΣ", "İstanbul", "ẞß", "\r\n", "\t", "    ",
    "__init__", "foo_bar", "CamelCase", "x" * 60, "é" * 40, "ありがとう", "中文", "``quoted''", "n't",
    " do not", " .", " ,", "'", "<0x41>", "▁", "▁▁", "//////\n", "!!!\n\n")
LATIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
POOLS = (
    LATIN, LATIN + " " * 12, "0123456789 .,", "\n\r\t  \x0b\x0c\x85\xa0\u2003\u3000\u180e\u200b",
    ".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+`~ ", "éèàüöñçßÀÉİıǅﬁﬀ", "абвгдежАБВЙй ё", "αβγδΑΒΓςσ ά",
    "你好世界今天天气中国。，、", "ひらがなカタカナーゞ゛", "안녕하세요한글각간ᄀ각ᆨ", "مرحبا ةًٌٍ ٠١٢",
    "नमस्ते दुनिया क्षि ०१", "ไทยข้อความำ", "😀😂🤣👨‍👩‍👧‍👦🇩🇪🏳️‍🌈👍🏽🥰",
    "\u0301\u0300\u0323\u0302\u0308\u20dd\u0e33",
    "²³½¼①ⅣⅫ٣۴𝟘𝟙", "ʰʲªº𝒜𝓑ℝ™℃ﷺ㍿", "\u200d\u200c\ufeff\ufffd\u2028\u2029", "▁ĠĊ<s></s>",
    "'s't're've'm'll'd'S'T'RE'ſ'x ",
    "\U0001F1E6\U000E0001\U0010FFFF\ue000\u0378\x00\x01\x1f\x7f\x8f")
# Characters that are the same in every library's Unicode data: of version 3.2, and of one category
# since.
OLD = [chr(code) for code in range(0x20, 0x20000)
       if unicodedata.ucd_3_2_0.category(chr(code)) == unicodedata.category(chr(code))
       not in ("Cn", "Cs", "Co")]
# What broken() may make of bytes: they can form a newer character.
KNOWN = {"\ufffd", *OLD, *map(chr, range(0x20)), *"".join(POOLS + WORDS_APART + LANGUAGES)}


@functools.cache
def corpus():
    """What the tokenizers are trained on: sources and prose of Python's own library, a licence,
    and other languages. Nothing of this repository that changes, for the strings would with it."""
    return [inspect.getsource(module) for module in (argparse, doctest, inspect, textwrap)] + [
        (ROOT / "LICENSE-APACHE").read_text(encoding="utf-8")] + list(LANGUAGES) * 20


def strings(count, seed=1):
    """Texts of many languages and scripts, code, runs of white space, marks, emoji, very long
    words."""
    random.seed(seed)
    source = "\n".join(corpus())
    found = ["", " ", "  ", "\n", "a", " a", "a ", "\u0301", "\u200b", "a" * 5000, " " * 3000,
             "\u0301" * 300, "中" * 2000, *WORDS_APART, *LANGUAGES]
    while len(found) < count:
        kind = random.random()
        if kind < 0.25:
            length = random.randint(1, 40)
            found.append("".join(random.choice(random.choice(POOLS)) for _ in range(length)))
        elif kind < 0.4:
            pool = random.choice(POOLS)
            found.append("".join(random.choice(pool) for _ in range(random.randint(1, 30))))
        elif kind < 0.6:
            found.append(random.choice(["", " "]) + random.choice(["", " ", "  "]).join(
                random.choice(WORDS_APART) for _ in range(random.randint(1, 10))))
        elif kind < 0.9:
            at = random.randrange(len(source) - 300)
            found.append(source[at:at + random.randint(1, 300)])
        elif kind < 0.95:
            found.append("".join(random.choice(OLD) for _ in range(random.randint(1, 15))))
        else:
            found.append(random.choice(LATIN) * random.randint(20, 300) +
                         random.choice(WORDS_APART))
    return found


def broken(count, seed=2):
    """Bytes that are not UTF-8."""
    random.seed(seed)
    found = [b"\xff", b"a\xc3", b"\xc3(", b"\xe4\xbd", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
             b"\xc0\x80"]
    texts = [text.encode() for text in strings(count + 100, seed) if text]
    while len(found) < count:
        data = bytearray(random.choice(texts))
        for _ in range(random.randint(1, 4)):
            data.insert(random.randrange(len(data) + 1), random.randrange(128, 256))
        if KNOWN.issuperset(data.decode(errors="replace")):
            found.append(bytes(data))
    return found


# ---- tokenizers ----------------------------------------------------------------------------------

def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(pre, *, normalizer=None, post=None, ignore_merges=False):
    """Byte-level BPE, with added tokens of every kind."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if post:
        tokenizer.post_processor = post
    tokenizer.add_tokens([AddedToken("myadded", normalized=True),
                          AddedToken("LSTRIP", lstrip=True, normalized=False),
                          AddedToken("RSTRIP", rstrip=True), AddedToken("single", single_word=True),
                          AddedToken("Ünorm")])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def after(*patterns):
    """The patterns, then bytes."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*(split(pattern) for pattern in patterns), to_bytes])


def template(before, behind=()):
    tokens = [*before, *behind]
    return processors.TemplateProcessing(
        single=" ".join([*(name for name, _ in before), "$A", *(name for name, _ in behind)]),
        pair="$A $B", special_tokens=tokens)


SPM_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                 decoders.Fuse(), decoders.Strip(" ", 1, 0)])
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback(normalizer, pre, *, fallback=True, fuse=True):
    """BPE over characters, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=2500, special_tokens=["<unk>", "<s>", "</s>"], limit_alphabet=120,
        show_progress=False))
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    for name in BYTES:
        vocabulary.setdefault(name, len(vocabulary))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge) for merge in merges],
                                unk_token="<unk>", byte_fallback=fallback, fuse_unk=fuse))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    if normalizer:
        made.normalizer = normalizer
    if pre:
        made.pre_tokenizer = pre
    made.decoder = SPM_DECODER
    made.post_processor = template([("<s>", 1)])
    return made


def legacy():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def unigram(normalizer, pre, *, fallback=False):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(corpus(), trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=special + (BYTES if fallback else []), unk_token="<unk>",
        show_progress=False))
    if fallback:
        pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
        pieces = [tuple(piece) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram(pieces, 2, byte_fallback=True))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
        tokenizer.add_special_tokens(special)
    tokenizer.decoder = SPM_DECODER if fallback else decoders.Metaspace()
    tokenizer.post_processor = template([], [("</s>", 1)])
    return tokenizer


def wordpiece(normalizer, pre):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=2500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def other_bpe(pre, *, normalizer=None, decoder=None, unk="<unk>", **affixes):
    tokenizer = Tokenizer(models.BPE(unk_token=unk, **affixes))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=2000, special_tokens=[unk] if unk else [], show_progress=False,
        limit_alphabet=150, **affixes))
    return tokenizer


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(),
                                                       pre_tokenizers.FixedLength(3)])
    tokenizer.train_from_iterator(corpus(), trainers.WordLevelTrainer(
        vocab_size=2000, special_tokens=["<unk>"], show_progress=False))
    return tokenizer


@functools.cache
def charsmap():
    """The character map of SentencePiece's nmt_nfkc."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LANGUAGES * 20), model_writer=model, vocab_size=400,
        hard_vocab_limit=False, minloglevel=2)
    description = sentencepiece_model_pb2.ModelProto()
    description.ParseFromString(model.getvalue())
    return normalizers.Precompiled(description.normalizer_spec.precompiled_charsmap)


def metaspace(**options):
    return pre_tokenizers.Metaspace(**options)


KINDS = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False),
                               post=processors.ByteLevel(trim_offsets=False)),
    "roberta": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True),
                                  post=processors.RobertaProcessing(("<|endoftext|>", 0),
                                                                    ("<|endoftext|>", 0))),
    "llama3": lambda: byte_level(after(LLAMA3), ignore_merges=True, post=processors.Sequence([
        processors.ByteLevel(trim_offsets=True), template([("<|endoftext|>", 0)])])),
    "qwen2": lambda: byte_level(after(QWEN2), normalizer=normalizers.NFC(),
                                post=processors.ByteLevel(trim_offsets=False)),
    "o200k": lambda: byte_level(after(O200K)),
    "tekken": lambda: byte_level(after(TEKKEN), normalizer=normalizers.NFKC()),
    "deepseek_v3": lambda: byte_level(after(*DEEPSEEK_V3), normalizer=normalizers.Sequence([])),
    "deepseek_v2": lambda: byte_level(pre_tokenizers.Sequence([
        *(split(pattern) for pattern in DEEPSEEK_V2), pre_tokenizers.Digits(True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])),
    "starcoder": lambda: byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        normalizer=normalizers.NFD()),
    "bytes normalized": lambda: byte_level(
        split(r"\w+|\s+|[^\w\s]+"),
        normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.ByteLevel()])),
    "llama2": lambda: byte_fallback(None, metaspace(prepend_scheme="first", split=False)),
    "llama2 legacy": lambda: byte_fallback(legacy(), None),
    "metaspace": lambda: byte_fallback(None, metaspace(prepend_scheme="always", split=True)),
    "llama2 without bytes": lambda: byte_fallback(legacy(), None, fallback=False),
    "llama2 unfused": lambda: byte_fallback(legacy(), None, fallback=False, fuse=False),
    "t5": lambda: unigram(normalizers.Sequence([
        charsmap(), normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁")]), metaspace()),
    "albert": lambda: unigram(normalizers.Sequence([
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
        normalizers.StripAccents(), normalizers.Lowercase(), charsmap(),
        normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])),
    "unigram bytes": lambda: unigram(normalizers.Nmt(), metaspace(prepend_scheme="first"),
                                     fallback=True),
    "bert": lambda: wordpiece(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "bert cased": lambda: wordpiece(normalizers.BertNormalizer(lowercase=False, strip_accents=True),
                                    pre_tokenizers.BertPreTokenizer()),
    "wordpiece": lambda: wordpiece(normalizers.Strip(), pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Digits(False)])),
    "clip": lambda: other_bpe(split(CLIP, "removed", True), decoder=decoders.BPEDecoder(),
                              normalizer=normalizers.Sequence([normalizers.NFC(),
                                                               normalizers.Lowercase()]),
                              end_of_word_suffix="</w>"),
    "prefixed bpe": lambda: other_bpe(pre_tokenizers.CharDelimiterSplit(" "),
                                      decoder=decoders.WordPiece(cleanup=False),
                                      continuing_subword_prefix="##"),
    "word level": word_level,
    **{f"split {behavior}{' inverted' * invert}":
       lambda behavior=behavior, invert=invert: other_bpe(
           split(r"\s|[aeiou]", behavior, invert), unk=None)
       for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous")
       for invert in (False, True)},
}
