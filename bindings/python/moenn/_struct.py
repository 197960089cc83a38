"""Between the interface's structs and Python's values."""
from __future__ import annotations

import ctypes
import os
from typing import Any, Type, TypeVar, Union

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError

S = TypeVar("S", bound=ctypes.Structure)
R = TypeVar("R")

Ids = npt.NDArray[np.int32]


def make(kind: Type[S], /, **members: Any) -> S:
    """A struct with its size and some members set."""
    struct = kind(ctypes.sizeof(kind))
    for name, value in members.items():
        if isinstance(value, tuple) and len(value) > len(getattr(struct, name)):
            raise ArgumentError(f"{name} has {len(value)} values; there is room for "
                                f"{len(getattr(struct, name))}")
        setattr(struct, name, value)
        if isinstance(value, int) and value != getattr(struct, name) and not isinstance(
                getattr(struct, name), float):
            raise ArgumentError(f"{name} is {value}, which its type cannot hold")
    return struct


def read(struct: ctypes.Structure, kind: Type[R]) -> R:
    """A named tuple of the struct's members of the same names."""
    return kind(*[getattr(struct, name) for name in kind._fields])  # type: ignore[attr-defined]


def path_bytes(path: Union[str, "os.PathLike[str]"]) -> bytes:
    name = os.fsencode(path)
    if b"\0" in name:
        raise ArgumentError("a path holds a NUL")
    return name


def name_bytes(name: str) -> bytes:
    if "\0" in name:
        raise ArgumentError("a name holds a NUL")
    return name.encode(errors="surrogateescape")


def token_ids(ids: npt.ArrayLike) -> Ids:
    """Ids as contiguous int32: without a copy where they are that already."""
    array = np.asarray(ids)
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"token ids are of type {array.dtype}; they must be integers")
    if array.dtype != np.int32 and (array.max() > 2**31 - 1 or array.min() < -2**31):
        raise ArgumentError("a token id does not fit in 32 bits")
    return np.ascontiguousarray(array, np.int32).reshape(array.shape)


def batch_ids(ids: npt.ArrayLike) -> Ids:
    """[batch, seq_len] ids; a single sequence is a batch of one."""
    array = token_ids(ids)
    if array.ndim == 1:
        return array.reshape(1, -1)
    if array.ndim != 2:
        raise ArgumentError(f"tokens have {array.ndim} dimensions; they are [batch, seq_len]")
    return array
