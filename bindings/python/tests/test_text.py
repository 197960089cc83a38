import base64
import json
import struct
import tempfile
import unittest
from pathlib import Path

import moenn
import numpy as np
from common import Case


class TextTest(Case):
    def test_tokenizer_round_trip(self) -> None:
        with moenn.Tokenizer() as tokenizer:
            self.assertEqual(tokenizer.vocab_size, moenn.ByteToken.VOCAB)
            self.assertEqual(tokenizer.encode("ab\0ü").tolist(), list("ab\0ü".encode()))
            self.assertEqual(tokenizer.decode(tokenizer.encode("ab\0ü")), "ab\0ü")
            self.assertEqual(tokenizer.decode_bytes([moenn.ByteToken.BOS, 255, 65]), b"\xffA")
            self.assertEqual(tokenizer.encode("").size, 0)
            self.assertEqual(tokenizer.decode([]), "")
            with self.assertRaises(UnicodeDecodeError):
                tokenizer.decode([255], errors="strict")
            with self.assertRaises(moenn.ArgumentError):
                tokenizer.decode([259])

    def test_special_tokens(self) -> None:
        tokenizer = moenn.Tokenizer()
        self.assertEqual(tokenizer.special(moenn.SpecialToken.EOS), moenn.ByteToken.EOS)
        self.assertIsNone(tokenizer.special(moenn.SpecialToken.UNK))
        self.assertEqual(tokenizer.token(moenn.ByteToken.BOS), "<|bos|>")
        self.assertEqual(tokenizer.token(ord(" ")), "\u0120")
        self.assertEqual(tokenizer.id("\u0120"), ord(" "))
        self.assertIsNone(tokenizer.id("ab"))
        with self.assertRaises(moenn.NotFoundError):
            tokenizer.token(259)
        spelled = tokenizer.encode("a<|eos|>", parse_special=True)
        self.assertEqual(spelled.tolist(), [ord("a"), moenn.ByteToken.EOS])
        self.assertEqual(tokenizer.encode("a<|eos|>", add_special=True).size, 8)
        self.assertEqual(tokenizer.decode(spelled), "a")
        self.assertEqual(tokenizer.decode(spelled, keep_special=True), "a<|eos|>")
        self.assertEqual("".join(tokenizer.stream(spelled, keep_special=True)), "a<|eos|>")

    def test_train_and_save(self) -> None:
        texts = ["low lower lowest", b"new newer newest low", "w\0x"]
        specials = ["<|end|>", "<pad>"]
        heard: list[tuple[int, int]] = []
        tokenizer = moenn.Tokenizer.train(texts, vocab_size=270, min_frequency=1, specials=specials,
                                          eos="<|end|>",
                                          progress=lambda *bytes: heard.append(bytes))
        self.assertEqual(tokenizer.vocab_size, 270)
        self.assertEqual(tokenizer.special(moenn.SpecialToken.EOS), 0)
        self.assertEqual(tokenizer.special(moenn.SpecialToken.PAD), 1)
        self.assertEqual(tokenizer.decode(tokenizer.encode("lowest w\0")), "lowest w\0")
        self.assertIsNotNone(tokenizer.id("low"))
        self.assertEqual(heard[-1], (sum(map(len, texts)),) * 2)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokenizer.save(folder)
            again = moenn.Tokenizer.load(folder)
            self.assertEqual(again.special(moenn.SpecialToken.EOS), 0)
            self.assertEqual(again.encode("newest").tolist(), tokenizer.encode("newest").tolist())
            tokenizer.save_llmc(folder / "tokenizer.bin")
            self.assertEqual(moenn.Tokenizer.load(folder / "tokenizer.bin").vocab_size, 270)
            (folder / "text").write_text("low low\nlower")
            pieces = moenn.Tokenizer.train_files([folder / "text"], moenn.TokenizerKind.UNIGRAM,
                                                 vocab_size=20, specials=["<unk>"], coverage=1)
            self.assertEqual(pieces.decode(pieces.encode("lower low")), "lower low")
            (folder / "ranks").write_text("".join(
                f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
            ranks = moenn.Tokenizer.load_tiktoken(folder / "ranks", ".")
            self.assertEqual(ranks.encode("ab").tolist(), list(b"ab"))
            moenn.Dataset.save_tokens(folder / "tokens", [1, 65535])
            dataset = moenn.Dataset.open_tokens(folder / "tokens", seq_len=1)
            self.assertEqual(dataset.info.tokens, 2)
            self.assertEqual(dataset.info.max_id, 65535)
        with self.assertRaises(moenn.UnsupportedError):
            moenn.Dataset.save_tokens("tokens", [65536])
        with self.assertRaises(moenn.CancelledError):
            moenn.Tokenizer.train(["a"], progress=lambda done, total: True)
        with self.assertRaises(ZeroDivisionError):
            moenn.Tokenizer.train(["a"], progress=lambda done, total: 1 // 0)
        with self.assertRaises(moenn.ArgumentError):
            moenn.Tokenizer.train(["a"], moenn.TokenizerKind.UNIGRAM)  # without unk

    def test_offsets(self) -> None:
        ids, offsets = moenn.Tokenizer().encode_offsets("aü<|pad|>", parse_special=True)
        self.assertEqual(ids.tolist(), [ord("a"), 0xC3, 0xBC, moenn.ByteToken.PAD])
        self.assertEqual(offsets.tolist(), [[0, 1], [1, 3], [1, 3], [3, 10]])

    def test_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
            (path / "tokenizer.json").write_text(json.dumps(
                {"model": model, "pre_tokenizer": {"type": "Whitespace"}}))
            (path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
            tokenizer = moenn.Tokenizer.load(path)
            self.assertEqual(tokenizer.encode("b a c").tolist(), [1, 0, 2])
            self.assertEqual(tokenizer.special(moenn.SpecialToken.EOS), 1)
            self.assertEqual(tokenizer.special(moenn.SpecialToken.UNK), 2)
            alone = moenn.Tokenizer.load(path / "tokenizer.json")
            self.assertIsNone(alone.special(moenn.SpecialToken.EOS))
            with self.assertRaises(moenn.NotFoundError):
                moenn.Tokenizer.load(path / "none")

    def test_stream_gives_whole_characters(self) -> None:
        tokenizer = moenn.Tokenizer()
        self.assertEqual(list(tokenizer.stream("aé€".encode() + b"\xe2")),
                         ["a", "é", "€", "\ufffd"])

    def test_dataset_of_tokens(self) -> None:
        data = moenn.Dataset.from_tokens(range(11), seq_len=5, batch=2)
        info = data.info
        self.assertEqual((info.tokens, info.windows, info.batches, info.max_id), (11, 2, 1, 10))
        tokens, targets = next(data)
        np.testing.assert_array_equal(tokens, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
        np.testing.assert_array_equal(targets, tokens + 1)

    def test_dataset_resumes(self) -> None:
        data = moenn.Dataset.from_tokens(np.arange(1000), seq_len=8, batch=2, shuffle=True, seed=4)
        first = [next(data)[0] for _ in range(5)]
        self.assertEqual(data.position, 5)
        data.seek(3)
        np.testing.assert_array_equal(next(data)[0], first[3])
        for step, (tokens, _) in zip(range(3), data):
            self.assertEqual(tokens.shape, (2, 8))

    def test_dataset_of_a_text(self) -> None:
        path = self.folder / "text"
        path.write_bytes(b"hello world")
        with moenn.Tokenizer() as tokenizer:
            data = moenn.Dataset.open_text(path, tokenizer, seq_len=4, begin=6)
        self.assertEqual(bytes(data.next()[0][0].tolist()), b"worl")
        self.assertEqual(
            bytes(moenn.Dataset.open_text(path, seq_len=4, end=5).next()[0][0].tolist()), b"hell")

    def test_dataset_of_a_token_file(self) -> None:
        path = self.folder / "tokens.bin"
        ids = np.arange(20, dtype=np.uint16)
        path.write_bytes(struct.pack("<256i", 20240520, 1, 20, *[0] * 253) + ids.tobytes())
        data = moenn.Dataset.open_tokens(path, seq_len=4)
        np.testing.assert_array_equal(data.next()[0][0], [0, 1, 2, 3])

    def test_dataset_refuses(self) -> None:
        with self.assertRaises(moenn.ArgumentError):
            moenn.Dataset.from_tokens([1, 2, 3], seq_len=0)
        with self.assertRaises(moenn.ArgumentError):
            moenn.Dataset.from_tokens([1, -2, 3], seq_len=1)
        with self.assertRaises(moenn.NotFoundError):
            moenn.Dataset.open_text(self.folder / "nothing", seq_len=4)
        with self.assertRaises(moenn.ArgumentError):
            moenn.Dataset.open_text("a\0b", seq_len=4)
        with self.assertRaises(moenn.ArgumentError):
            moenn.Dataset()


if __name__ == "__main__":
    unittest.main()
