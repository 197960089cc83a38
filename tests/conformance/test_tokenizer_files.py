"""Tokenizers read from the files of other programs, and learnt here, against sentencepiece,
tiktoken and tokenizers themselves: ids and decoded text of every text, without a difference."""

import base64
import io
import json
import random
import struct
import tempfile
import unittest
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Optional

import moenn
import sentencepiece
import texts
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = texts.texts()
BROKEN = texts.broken()
# Spelled in a text, a special token is text here and a token to tokenizers, whatever one asks for.
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>")
PLAIN = [text for text in TEXTS if not any(token in text for token in SPECIAL)]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """Lines of many kinds, with words that come again."""
    rng = random.Random(31)
    words = [text for text in texts.WRITTEN for text in text.split()]
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(600)]
    return lines + texts.WRITTEN * 3 + [texts.random_text(rng) for _ in range(1500)]


def byte_characters() -> dict[str, int]:
    """The byte map of byte-level vocabularies, from character to byte."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(256 + i): byte for i, byte in enumerate(rest)
    }


class TokenizerFileTest(unittest.TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)

    def same(
        self,
        ours: moenn.Tokenizer,
        given: Iterable[Any],
        encode: Callable[[Any], list[int]],
        decode: Callable[[list[int]], bytes],
    ) -> None:
        """Ids and decoded bytes of every text; the first few that differ are the message."""
        wrong = []
        for text in given:
            ids, theirs = ours.encode(text).tolist(), encode(text)
            if ids != theirs:
                wrong.append(f"{text[:60]!r}: ids {ids[:20]} here, {theirs[:20]} there")
            elif ours.decode_bytes(ids) != decode(ids):
                wrong.append(f"{text[:60]!r}: {ours.decode_bytes(ids)[:60]!r} here")
        self.assertFalse(wrong, f"{len(wrong)} texts:\n" + "\n".join(wrong[:5]))


class SentencePieceTest(TokenizerFileTest):
    """Models that sentencepiece trains, with each of its settings."""

    def compare(self, model_type: str, vocab_size: int = 3000, **settings: Any) -> None:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )
        path = self.folder / "tokenizer.model"
        path.write_bytes(model.getvalue())
        theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        ours = moenn.Tokenizer.load(path)
        self.assertEqual(ours.vocab_size, theirs.vocab_size())
        everything = [text.encode() for text in TEXTS] + BROKEN

        def decode(ids: list[int]) -> bytes:
            return theirs.DecodeIds(ids).encode()

        self.same(ours, everything, theirs.EncodeAsIds, decode)
        for text in TEXTS[:500]:
            ids = ours.encode(text).tolist()
            self.assertEqual("".join(ours.stream(ids)), theirs.DecodeIds(ids), text[:60])
        self.any_ids(ours, theirs)

    def any_ids(
        self, ours: moenn.Tokenizer, theirs: sentencepiece.SentencePieceProcessor
    ) -> None:
        """As a model may generate them: in any order, bytes that form no character among them. The
        last one ends what came before."""
        rng = random.Random(7)
        ids = range(theirs.vocab_size())
        pieces = [theirs.IdToPiece(i).strip("▁") for i in ids]
        end = next(i for i in ids if pieces[i].isalpha() and not theirs.IsControl(i))
        some = [i for i in ids if theirs.IsByte(i) or len(theirs.IdToPiece(i)) == 1] or ids
        for _ in range(3000):
            made = [rng.choice(some if rng.random() < 0.7 else ids) for _ in range(12)] + [end]
            self.assertEqual(ours.decode(made), theirs.DecodeIds(made), made)
            self.assertEqual("".join(ours.stream(made)), theirs.DecodeIds(made), made)

    def test_unigram(self) -> None:
        self.compare("unigram")

    def test_unigram_bytes(self) -> None:
        self.compare("unigram", byte_fallback=True, character_coverage=0.98)

    def test_unigram_suffix(self) -> None:
        self.compare("unigram", treat_whitespace_as_suffix=True)

    def test_unigram_user_defined(self) -> None:
        self.compare(
            "unigram",
            user_defined_symbols=["\n", "def", "▁▁", "Ａ", "<sep>", "ing tion"],
            control_symbols=["<ctl>"],
            remove_extra_whitespaces=False,
        )

    def test_unigram_across_words(self) -> None:
        self.compare("unigram", split_by_whitespace=False, split_by_unicode_script=False)

    def test_bpe(self) -> None:
        self.compare("bpe")

    def test_bpe_as_llama_has_it(self) -> None:
        self.compare(
            "bpe",
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
        )

    def test_bpe_without_prefix(self) -> None:
        self.compare("bpe", add_dummy_prefix=False, normalization_rule_name="nfkc_cf")

    def test_bpe_user_defined(self) -> None:
        self.compare(
            "bpe",
            user_defined_symbols=["\n", "def", "▁▁", "Ａ", "<sep>", "  "],
            control_symbols=["<ctl>"],
            pad_id=3,
            byte_fallback=True,
            character_coverage=0.98,
        )

    def test_bpe_suffix_across_words(self) -> None:
        self.compare(
            "bpe", 3500, split_by_whitespace=False, treat_whitespace_as_suffix=True
        )


    def test_words(self) -> None:
        self.compare("word")

    def test_words_bytes(self) -> None:
        self.compare("word", 1000, byte_fallback=True, remove_extra_whitespaces=False)

    def test_words_user_defined(self) -> None:
        self.compare(
            "word",
            user_defined_symbols=["\n", "def", "▁▁", "▁the", "<sep>"],
            control_symbols=["<ctl>"],
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
        )

    def test_words_suffix(self) -> None:
        self.compare("word", treat_whitespace_as_suffix=True)

    def test_characters(self) -> None:
        self.compare("char")

    def test_characters_bytes(self) -> None:
        self.compare("char", byte_fallback=True, character_coverage=0.98)

    def test_characters_user_defined(self) -> None:
        self.compare(
            "char",
            character_coverage=0.98,
            user_defined_symbols=["\n", "def", "▁▁", "Ａ", "<sep>", "  "],
            control_symbols=["<ctl>"],
            remove_extra_whitespaces=False,
            treat_whitespace_as_suffix=True,
        )


class ByteLevelTest(TokenizerFileTest):
    """One vocabulary, learnt by tokenizers, in the files of others."""

    @classmethod
    def setUpClass(cls) -> None:
        learnt = Tokenizer(models.BPE())
        learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learnt.train_from_iterator(
            corpus(),
            trainers.BpeTrainer(
                vocab_size=2000,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        model = json.loads(learnt.to_str())["model"]
        cls.tokens: list[str] = sorted(model["vocab"], key=model["vocab"].__getitem__)
        cls.merges: list[list[str]] = model["merges"]
        to_byte = byte_characters()
        cls.ranks = {
            bytes(to_byte[character] for character in token): rank
            for rank, token in enumerate(cls.tokens)
        }

    def against_tiktoken(self, ours: moenn.Tokenizer, pattern: str) -> None:
        theirs = tiktoken.Encoding(
            "compared", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens={}
        )
        self.same(ours, TEXTS, theirs.encode_ordinary, theirs.decode_bytes)

    def test_tiktoken(self) -> None:
        path = self.folder / "ranks.tiktoken"
        path.write_text(
            "".join(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in self.ranks.items())
        )
        for pattern in (GPT2, CL100K, r"[\p{L}\p{M}]+|\s+|[^\p{L}\p{M}\s]+"):
            with self.subTest(pattern=pattern):
                self.against_tiktoken(moenn.Tokenizer.load_tiktoken(path, pattern), pattern)
        with self.assertRaisesRegex(moenn.UnsupportedError, "2000 tokens"):
            moenn.Tokenizer.load(path)

    def test_llmc(self) -> None:
        end = b"<|endoftext|>"
        tokens = [*self.ranks, end]
        header = struct.pack("<4I", 20240328, 2, len(tokens), len(tokens) - 1) + bytes(4 * 252)
        path = self.folder / "tokenizer.bin"
        data = header + b"".join(bytes([len(token)]) + token for token in tokens)
        path.write_bytes(data)
        ours = moenn.Tokenizer.load(path)
        self.against_tiktoken(ours, GPT2)
        ours.save_llmc(self.folder / "again.bin")
        self.assertEqual((self.folder / "again.bin").read_bytes(), data)

    def test_gguf(self) -> None:
        def string(text: str) -> bytes:
            return struct.pack("<Q", len(text.encode())) + text.encode()

        def strings(key: str, values: list[str]) -> bytes:
            head = string(key) + struct.pack("<IIQ", 9, 8, len(values))
            return head + b"".join(map(string, values))

        pairs = [
            string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("gpt2"),
            string("tokenizer.ggml.pre") + struct.pack("<I", 8) + string("gpt-2"),
            strings("tokenizer.ggml.tokens", self.tokens),
            strings("tokenizer.ggml.merges", [" ".join(merge) for merge in self.merges]),
        ]
        path = self.folder / "vocabulary.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
        self.against_tiktoken(moenn.Tokenizer.load(path), GPT2)


class LearntTest(TokenizerFileTest):
    """Tokenizers learnt here, opened there."""

    specials = ["<pad>", "<unk>", "<s>", "</s>"]

    def opened(self, ours: moenn.Tokenizer) -> Tokenizer:
        """There, and here once more, which must be the same."""
        path = self.folder / "tokenizer.json"
        ours.save(path)
        again = moenn.Tokenizer.load(path)
        for text in TEXTS:
            self.assertEqual(again.encode(text).tolist(), ours.encode(text).tolist())
        return Tokenizer.from_file(str(path))

    def against(self, ours: moenn.Tokenizer) -> Tokenizer:
        theirs = self.opened(ours)
        self.same(
            ours,
            PLAIN,
            lambda text: theirs.encode(text).ids,
            lambda ids: theirs.decode(ids).encode(),
        )
        for text in TEXTS:
            found = ours.encode(text, parse_special=True).tolist()
            self.assertEqual(found, theirs.encode(text).ids)
        return theirs

    def learn_there(self, lines: list[str], vocab_size: int, least: int) -> dict[str, Any]:
        theirs = Tokenizer(models.BPE())
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=least,
            special_tokens=self.specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        theirs.train_from_iterator(lines, trainer)
        return json.loads(theirs.to_str())["model"]

    def same_merges(self, lines: list[str], vocab_size: int, least: int) -> moenn.Tokenizer:
        ours = moenn.Tokenizer.train(
            lines, vocab_size=vocab_size, min_frequency=least, specials=self.specials
        )
        path = self.folder / "learnt.json"
        ours.save(path)
        model = json.loads(path.read_text())["model"]
        theirs = self.learn_there(lines, vocab_size, least)
        self.assertEqual(model["vocab"], theirs["vocab"])
        self.assertEqual(model["merges"], theirs["merges"])
        return ours

    def test_bpe(self) -> None:
        self.against(self.same_merges(corpus(), 3000, 2))

    def test_bpe_ties(self) -> None:
        """Few letters and short lines: equal counts everywhere, and runs of one letter."""
        rng = random.Random(3)
        for alphabet in ("a", "ab", "abc", " ab", "éèa😀 ", "0123 \n"):
            lines = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(90)]
            for least in (1, 2, 3):
                self.same_merges(lines, 600, least)

    def test_bpe_shakespeare(self) -> None:
        path = self.shared("data/tinyshakespeare.txt")
        lines = path.read_text().splitlines(keepends=True)
        ours = self.same_merges(lines, 32000, 2)
        files = moenn.Tokenizer.train_files([path], vocab_size=32000, specials=self.specials)
        files.save(self.folder / "files.json")
        ours.save(self.folder / "lines.json")
        self.assertEqual(
            (self.folder / "files.json").read_bytes(), (self.folder / "lines.json").read_bytes()
        )

    def test_bpe_pattern(self) -> None:
        self.against(
            moenn.Tokenizer.train(
                corpus(), vocab_size=2000, pattern=CL100K, specials=self.specials
            )
        )

    def test_unigram(self) -> None:
        ours = moenn.Tokenizer.train(
            corpus(), moenn.TokenizerKind.UNIGRAM, vocab_size=3000, specials=self.specials
        )
        self.assertEqual(ours.vocab_size, 3000)
        self.against(ours)

    def test_unigram_fits_as_sentencepiece(self) -> None:
        """As few tokens as sentencepiece's own vocabulary of that size, within one in a hundred."""
        lines = self.shared("data/tinyshakespeare.txt").read_text().split("\n")
        ours = moenn.Tokenizer.train(
            lines, moenn.TokenizerKind.UNIGRAM, vocab_size=4000, specials=self.specials
        )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=4000, minloglevel=2
        )
        theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        count_here = sum(ours.encode(line).size for line in lines)
        count_there = sum(len(theirs.EncodeAsIds(line)) for line in lines)
        self.assertLess(count_here, 1.01 * count_there)

    def shared(self, name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / "../shared" / name
        if not path.exists():
            self.skipTest(f"there is no {path}")
        return path


class RealTest(TokenizerFileTest):
    """Published vocabularies of the shared folder, written as tokenizer.json and opened there."""

    def test_gguf_to_json(self) -> None:
        folder: Optional[Path] = Path(__file__).resolve().parents[2] / "../shared/tokenizers"
        if not folder.exists():
            self.skipTest(f"there is no {folder}")
        for name in ("gpt-2", "llama-spm", "deepseek-llm"):
            with self.subTest(vocabulary=name):
                ours = moenn.Tokenizer.load(folder / f"ggml-vocab-{name}.gguf")
                ours.save(self.folder / "tokenizer.json")
                theirs = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
                for text in PLAIN:
                    ids = theirs.encode(text, add_special_tokens=False).ids
                    self.assertEqual(ours.encode(text).tolist(), ids, text[:60])


if __name__ == "__main__":
    unittest.main()
