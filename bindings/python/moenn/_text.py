"""Tokenizers and datasets."""
from __future__ import annotations

import codecs
from ctypes import byref, c_int64, c_size_t, create_string_buffer
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError
from ._handle import Guard, Handle, Owner, receive
from ._library import check, lib
from ._model import Path
from ._raw import Status, nn_dataset_info_t, nn_dataset_options_t
from ._struct import Ids, make, path_bytes, read, token_ids


class Tokenizer(Handle):
    """Text to ids and back. Any thread may use it at any time."""

    def __init__(self) -> None:
        """The byte tokenizer: id = byte, and the specials of ByteToken."""
        self._owner = Owner(receive(lib.nn_tokenizer_create_bytes), lib.nn_tokenizer_destroy)

    @property
    def vocab_size(self) -> int:
        """Ids in the vocabulary."""
        return self._value(lib.nn_tokenizer_vocab_size)

    def encode(self, text: Union[str, bytes]) -> Ids:
        """The ids of a text (as UTF-8) or of any bytes."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        owner, count = self._own(), c_int64()
        ids = np.empty(len(data), np.int32)  # enough, where an id is at least a byte
        while True:
            status = lib.nn_tokenizer_encode(owner.pointer, data, len(data), ids.ctypes.data, len(ids),
                                             byref(count))
            if status != Status.CAPACITY:
                break
            ids = np.empty(count.value, np.int32)
        check(status)
        return ids[:count.value]

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        """The bytes of ids; specials give none."""
        array, owner, count = token_ids(ids).reshape(-1), self._own(), c_size_t()
        text = create_string_buffer(array.size + 1)
        while True:
            status = lib.nn_tokenizer_decode(owner.pointer, array.ctypes.data, array.size, text,
                                             len(text), byref(count))
            if status != Status.CAPACITY:
                break
            text = create_string_buffer(count.value)
        check(status)
        return text.raw[:count.value]

    def decode(self, ids: npt.ArrayLike, errors: str = "replace") -> str:
        """The text of ids; errors says what becomes of bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode(errors=errors)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come: each piece as soon as its characters are whole."""
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            piece = utf8.decode(self.decode_bytes([token]))
            if piece:
                yield piece
        rest = utf8.decode(b"", True)
        if rest:
            yield rest


class DatasetInfo(NamedTuple):
    """Sizes of a dataset."""

    tokens: int
    windows: int
    batches: int
    max_id: int


class Dataset(Handle):
    """A token stream cut into windows, in an order that its options and position determine. Iterating
    takes the next batches without end.

    batch: sequences per batch. seq_len: tokens per sequence. begin, end: tokens of the stream to use, end 0:
    all. shuffle: windows in random order, else in theirs.
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
        """The next batch: tokens and targets, [batch, seq_len] each; a target of -1 does not count."""
        tokens, targets = np.empty(self._shape, np.int32), np.empty(self._shape, np.int32)
        self._call(lib.nn_dataset_next, tokens.ctypes.data, targets.ctypes.data)
        return tokens, targets

    def __iter__(self) -> Iterator[Tuple[Ids, Ids]]:
        return self

    __next__ = next

    @property
    def position(self) -> int:
        """Batches taken so far. With the same file, options and position, the same batches follow."""
        return self._value(lib.nn_dataset_position)

    def seek(self, position: int) -> None:
        """Goes to a position."""
        self._call(lib.nn_dataset_seek, position)
