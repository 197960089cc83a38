"""Tokenizers and datasets."""
from __future__ import annotations

from ctypes import (Array, byref, c_char_p, c_int64, c_size_t, c_void_p, cast, create_string_buffer,
                    string_at)
from typing import (Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple,
                    Union)

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError
from ._handle import Callback, Guard, Handle, Owner, receive
from ._library import check, lib
from ._model import Path, Progress
from ._raw import (SpecialToken, Status, TokenizerKind, nn_dataset_info_t, nn_dataset_options_t,
                   nn_decode_options_t, nn_decode_stream_t, nn_encode_options_t, nn_progress_fn,
                   nn_tokenizer_train_options_t)
from ._struct import Ids, make, path_bytes, read, token_ids


def c_text(text: str) -> bytes:
    """A string for C, which ends it at a NUL."""
    data = text.encode()
    if b"\0" in data:
        raise ArgumentError(f"{text!r} holds a NUL byte")
    return data


def c_texts(texts: Sequence[bytes]) -> Array[c_char_p]:
    """An array of pointers to them, which keeps them."""
    return (c_char_p * len(texts))(*texts)


class Tokenizer(Handle):
    """Text to ids and back. Any thread may use it at any time."""

    def __init__(self) -> None:
        """The byte tokenizer: id = byte, and the specials of ByteToken."""
        self._owner = Owner(receive(lib.nn_tokenizer_create_bytes), lib.nn_tokenizer_destroy)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """A tokenizer file (tokenizer.json, SentencePiece, tiktoken, GGUF, llm.c), or the folder
        that holds one."""
        return cls._created(lib.nn_tokenizer_load, path_bytes(path))

    @classmethod
    def load_tiktoken(cls, path: Path, pattern: str) -> Tokenizer:
        """A tiktoken rank file, whose words are the matches of a pattern."""
        return cls._created(lib.nn_tokenizer_load_tiktoken, path_bytes(path), c_text(pattern))

    @classmethod
    def train(cls, texts: Iterable[Union[str, bytes]], kind: TokenizerKind = TokenizerKind.BPE, *,
              vocab_size: int = 32000, min_frequency: int = 2, specials: Sequence[str] = (),
              pattern: Optional[str] = None, coverage: float = 0.9995, bos: str = "<s>",
              eos: str = "</s>", pad: str = "<pad>", unk: str = "<unk>",
              progress: Optional[Progress] = None) -> Tokenizer:
        """Learns a vocabulary from texts; words do not go from one to the next.

        specials get the first ids. pattern (BPE): what cuts text into words; None: GPT-2's.
        coverage (Unigram): share of the text that characters in the vocabulary make up. bos, eos,
        pad, unk: which specials are those. progress(done, total) hears of bytes, and ends the call
        by returning true.
        """
        data = [text.encode() if isinstance(text, str) else bytes(text) for text in texts]
        sizes = (c_size_t * len(data))(*map(len, data))
        return cls._train(lib.nn_tokenizer_train, (c_texts(data), sizes, len(data)), kind,
                          vocab_size, min_frequency, specials, pattern, coverage, bos, eos, pad,
                          unk, progress)

    @classmethod
    def train_files(cls, paths: Sequence[Path], kind: TokenizerKind = TokenizerKind.BPE, *,
                    vocab_size: int = 32000, min_frequency: int = 2, specials: Sequence[str] = (),
                    pattern: Optional[str] = None, coverage: float = 0.9995, bos: str = "<s>",
                    eos: str = "</s>", pad: str = "<pad>", unk: str = "<unk>",
                    progress: Optional[Progress] = None) -> Tokenizer:
        """The same from files, of which each line with its end is a text."""
        names = c_texts([path_bytes(path) for path in paths])
        return cls._train(lib.nn_tokenizer_train_files, (names, len(names)), kind, vocab_size,
                          min_frequency, specials, pattern, coverage, bos, eos, pad, unk, progress)

    @classmethod
    def _train(cls, function: Callable[..., int], source: Tuple[Any, ...], kind: TokenizerKind,
               vocab_size: int, min_frequency: int, specials: Sequence[str],
               pattern: Optional[str], coverage: float, bos: str, eos: str, pad: str, unk: str,
               progress: Optional[Progress]) -> Tokenizer:
        names = c_texts([c_text(special) for special in specials])
        callback = Callback(progress or (lambda done, total: False))
        options = make(nn_tokenizer_train_options_t, kind=kind, vocab_size=vocab_size,
                       min_frequency=min_frequency, specials=cast(names, c_void_p),
                       special_count=len(names), coverage=coverage, bos=c_text(bos),
                       eos=c_text(eos), pad=c_text(pad), unk=c_text(unk))
        if pattern is not None:
            options.pattern = c_text(pattern)
        if progress is not None:
            options.progress = nn_progress_fn(callback)
        with callback:
            return cls._created(function, *source, byref(options))

    @classmethod
    def _created(cls, function: Callable[..., int], *source: Any) -> Tokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._owner = Owner(receive(function, *source), lib.nn_tokenizer_destroy)
        return tokenizer

    def save(self, path: Path) -> None:
        """Writes tokenizer.json; into a folder also tokenizer_config.json."""
        owner = self._own()
        check(lib.nn_tokenizer_save(owner.pointer, path_bytes(path)))

    def save_llmc(self, path: Path) -> None:
        """Writes a tokenizer file of llm.c."""
        owner = self._own()
        check(lib.nn_tokenizer_save_llmc(owner.pointer, path_bytes(path)))

    @property
    def vocab_size(self) -> int:
        """One past the largest id."""
        return self._value(lib.nn_tokenizer_vocab_size)

    def special(self, which: SpecialToken) -> Optional[int]:
        """The id of a special token, where there is one."""
        found = self._value(lib.nn_tokenizer_special, which)
        return None if found < 0 else found

    def id(self, text: str) -> Optional[int]:
        """The id of a token as the vocabulary spells it."""
        data = text.encode()
        found = self._value(lib.nn_tokenizer_id, data, len(data))
        return None if found < 0 else found

    def token(self, id: int) -> str:
        """How the vocabulary spells a token."""
        text, size = c_void_p(), c_size_t()
        owner = self._own()
        check(lib.nn_tokenizer_token(owner.pointer, id, byref(text), byref(size)))
        return string_at(text.value or 0, size.value).decode(errors="replace")

    def encode(self, text: Union[str, bytes], *, add_special: bool = False,
               parse_special: bool = False) -> Ids:
        """The ids of a text (as UTF-8) or of any bytes.

        add_special: with those that the tokenizer puts around a text. parse_special: special tokens
        that the text spells become their ids.
        """
        return self._encode(text, add_special, parse_special, False)[0]

    def encode_offsets(self, text: Union[str, bytes], *, add_special: bool = False,
                       parse_special: bool = False) -> Tuple[Ids, npt.NDArray[np.int64]]:
        """The ids, and [ids, 2] where the text of each begins and ends, in bytes."""
        return self._encode(text, add_special, parse_special, True)

    def _encode(self, text: Union[str, bytes], add_special: bool, parse_special: bool,
                places: bool) -> Tuple[Ids, npt.NDArray[np.int64]]:
        data = text.encode() if isinstance(text, str) else bytes(text)
        owner, count = self._own(), c_int64()
        options = make(nn_encode_options_t, add_special=int(add_special),
                       parse_special=int(parse_special))
        room = len(data) + 8  # enough for most, where an id is at least a byte
        while True:
            ids, offsets = np.empty(room, np.int32), np.empty((room if places else 0, 2), np.int64)
            status = lib.nn_tokenizer_encode_with(owner.pointer, data, len(data), byref(options),
                                                  ids.ctypes.data,
                                                  offsets.ctypes.data if places else None, room,
                                                  byref(count))
            if status != Status.CAPACITY:
                break
            room = count.value
        check(status)
        return ids[:count.value], offsets[:count.value]

    def decode_bytes(self, ids: npt.ArrayLike, *, keep_special: bool = False) -> bytes:
        """The bytes of ids; specials give none unless they are kept."""
        array, owner, count = token_ids(ids).reshape(-1), self._own(), c_size_t()
        options = make(nn_decode_options_t, keep_special=int(keep_special))
        text = create_string_buffer(4 * array.size + 1)
        while True:
            status = lib.nn_tokenizer_decode_with(owner.pointer, array.ctypes.data, array.size,
                                                  byref(options), text, len(text), byref(count))
            if status != Status.CAPACITY:
                break
            text = create_string_buffer(count.value)
        check(status)
        return text.raw[:count.value]

    def decode(self, ids: npt.ArrayLike, errors: str = "replace", *,
               keep_special: bool = False) -> str:
        """The text of ids; errors says what becomes of bytes that are not UTF-8."""
        return self.decode_bytes(ids, keep_special=keep_special).decode(errors=errors)

    def stream(self, ids: Iterable[int], *, keep_special: bool = False) -> Iterator[str]:
        """The text of ids as they come: each piece as soon as its characters are whole."""
        state = make(nn_decode_stream_t, keep_special=int(keep_special))
        window: List[int] = []  # ids that the text to come still depends on
        for token in ids:
            window.append(int(token))
            piece = self._next(state, window, False)
            del window[:state.first]
            state.first = 0
            if piece:
                yield piece
        rest = self._next(state, window, True)
        if rest:
            yield rest

    def _next(self, state: nn_decode_stream_t, window: List[int], finish: bool) -> str:
        array, owner, count = token_ids(window).reshape(-1), self._own(), c_size_t()
        text = create_string_buffer(256)
        while True:
            status = lib.nn_tokenizer_decode_next(owner.pointer, byref(state), array.ctypes.data,
                                                  array.size, int(finish), text, len(text),
                                                  byref(count))
            if status != Status.CAPACITY:
                break
            text = create_string_buffer(count.value)
        check(status)
        return text.raw[:count.value].decode()


class DatasetInfo(NamedTuple):
    """Sizes of a dataset."""

    tokens: int
    windows: int
    batches: int
    max_id: int


class Dataset(Handle):
    """A token stream cut into windows, in an order that its options and position determine.
    Iterating takes the next batches without end.

    batch: sequences per batch. seq_len: tokens per sequence. begin, end: tokens of the stream to
    use, end 0: all. shuffle: windows in random order, else in theirs.
    """

    @classmethod
    def open_text(cls, path: Path, tokenizer: Optional[Tokenizer] = None, *, seq_len: int,
                  batch: int = 1, begin: int = 0, end: int = 0, shuffle: bool = False,
                  seed: int = 0) -> Dataset:
        """A text file, encoded by a tokenizer, or as bytes."""
        owner = None if tokenizer is None else tokenizer._own()
        return cls._open(lib.nn_dataset_open_text, path_bytes(path), owner and owner.pointer,
                         seq_len=seq_len, batch=batch, begin=begin, end=end, shuffle=int(shuffle),
                         seed=seed)

    @classmethod
    def open_tokens(cls, path: Path, *, seq_len: int, batch: int = 1, begin: int = 0, end: int = 0,
                    shuffle: bool = False, seed: int = 0) -> Dataset:
        """A token file of llm.c."""
        return cls._open(lib.nn_dataset_open_tokens, path_bytes(path), seq_len=seq_len, batch=batch,
                         begin=begin, end=end, shuffle=int(shuffle), seed=seed)

    @classmethod
    def from_tokens(cls, ids: npt.ArrayLike, *, seq_len: int, batch: int = 1, begin: int = 0,
                    end: int = 0, shuffle: bool = False, seed: int = 0) -> Dataset:
        """A copy of ids."""
        array = token_ids(ids).reshape(-1)
        return cls._open(lib.nn_dataset_from_tokens, array.ctypes.data, array.size, seq_len=seq_len,
                         batch=batch, begin=begin, end=end, shuffle=int(shuffle), seed=seed)

    @staticmethod
    def save_tokens(path: Path, ids: npt.ArrayLike) -> None:
        """Writes ids below 65,536 to a token file of llm.c."""
        array = token_ids(ids).reshape(-1)
        check(lib.nn_dataset_save_tokens(path_bytes(path), array.ctypes.data, array.size))

    @classmethod
    def _open(cls, function: Callable[..., int], *source: Any, **members: int) -> Dataset:
        dataset = cls.__new__(cls)
        options = make(nn_dataset_options_t, **members)
        dataset._owner = Owner(receive(function, *source, byref(options)), lib.nn_dataset_destroy,
                               Guard())
        dataset._shape = (options.batch or 1, options.seq_len)
        return dataset

    def __init__(self) -> None:
        self._shape: Tuple[int, int]
        raise ArgumentError("a Dataset is made by open_text(), open_tokens() or from_tokens()")

    @property
    def info(self) -> DatasetInfo:
        """Its sizes."""
        info = make(nn_dataset_info_t)
        self._call(lib.nn_dataset_info, byref(info))
        return read(info, DatasetInfo)

    def next(self) -> Tuple[Ids, Ids]:
        """The next batch: tokens and targets, [batch, seq_len] each; a target of -1 does not
        count."""
        tokens, targets = np.empty(self._shape, np.int32), np.empty(self._shape, np.int32)
        self._call(lib.nn_dataset_next, tokens.ctypes.data, targets.ctypes.data)
        return tokens, targets

    def __iter__(self) -> Iterator[Tuple[Ids, Ids]]:
        return self

    __next__ = next

    @property
    def position(self) -> int:
        """Batches taken so far. With the same file, options and position, the same batches
        follow."""
        return self._value(lib.nn_dataset_position)

    def seek(self, position: int) -> None:
        """Goes to a position."""
        self._call(lib.nn_dataset_seek, position)
