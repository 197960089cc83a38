"""DLPack (dlpack.h, version 0 layout): arrays pass between libraries without a copy.

A DLManagedTensor owns itself: whoever holds it calls its deleter once. In Python it travels in a
capsule named "dltensor", which a consumer renames; a capsule that nobody consumed deletes what it
holds.
"""
from __future__ import annotations

import ctypes
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8,
                    c_uint16, c_uint64, c_void_p)
from typing import Any, Dict, Tuple

import numpy as np
import numpy.typing as npt

from ._raw import DType

CPU, CUDA = 1, 2  # kDLCPU, kDLCUDA
_CODES = {DType.F32: (2, 32), DType.BF16: (4, 16), DType.F16: (2, 16), DType.F64: (2, 64),
          DType.I64: (0, 64), DType.I32: (0, 32), DType.I16: (0, 16), DType.I8: (0, 8),
          DType.U8: (1, 8), DType.BOOL: (6, 8)}


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32),
                ("ndim", c_int32), ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16),
                ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


class _Managed(Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


_Deleter = CFUNCTYPE(None, c_void_p)


def delete(managed: int) -> None:
    """Calls the deleter of a DLManagedTensor."""
    deleter = _Managed.from_address(managed).deleter
    if deleter:
        _Deleter(deleter)(managed)


# Capsules. A destructor sees its capsule when nothing refers to it any more, and so may not make a
# reference: it takes addresses.
_api = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, _Destructor)(
    ("PyCapsule_New", _api))
_address = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", _api))
_is_valid_at = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_address_at = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))
_NAME, _USED = b"dltensor", b"used_dltensor"  # a capsule keeps its name's address


def _destroy_capsule(capsule: int) -> None:
    if _is_valid_at(capsule, _NAME):
        delete(_address_at(capsule, _NAME))


_destructor = _Destructor(_destroy_capsule)


def to_capsule(managed: int) -> Any:
    return _new(managed, _NAME, _destructor)


def open_capsule(capsule: Any) -> int:
    """The address of the DLManagedTensor; ValueError for what is no fresh capsule."""
    address: int = _address(capsule, _NAME)
    return address


def consume_capsule(capsule: Any) -> None:
    """Says that the DLManagedTensor has a new owner."""
    _rename(capsule, _USED)


_lent: Dict[int, Tuple[Any, ...]] = {}


def _take_back(managed: int) -> None:
    _lent.pop(managed, None)


_take_back_callback = _Deleter(_take_back)


def lend(array: npt.NDArray[Any], dtype: DType) -> int:
    """A DLManagedTensor over an array's memory, which keeps the array until it is deleted."""
    code, bits = _CODES[dtype]
    size = array.dtype.itemsize
    shape = (c_int64 * array.ndim)(*array.shape)
    strides = (c_int64 * array.ndim)(*(stride // size for stride in array.strides))
    managed = _Managed(
        _Tensor(array.ctypes.data, CPU, 0, array.ndim, code, bits, 1, shape, strides, 0), None,
        ctypes.cast(_take_back_callback, c_void_p))
    address = ctypes.addressof(managed)
    _lent[address] = (managed, array, shape, strides)
    return address


class Exported:
    """A DLManagedTensor seen by numpy, which keeps this object as long as an array refers to it."""

    def __init__(self, owner: Any, address: int, shape: Tuple[int, ...], strides: Tuple[int, ...],
                 dtype: "np.dtype[Any]") -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False),
            "strides": tuple(stride * dtype.itemsize for stride in strides)}
