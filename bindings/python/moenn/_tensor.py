"""Tensors: n-dimensional arrays on a device."""
from __future__ import annotations

from ctypes import byref, c_int64, c_void_p
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

from . import _dlpack
from ._device import Device
from ._errors import ArgumentError, UnsupportedError
from ._handle import DeviceOwner, Guard, Handle, Owner, receive
from ._library import lib
from ._raw import DType, nn_tensor_info_t
from ._struct import make

# numpy has no bfloat16: its 16 bits are the upper half of a float32.
_NUMPY: Dict[DType, "np.dtype[Any]"] = {
    DType.F32: np.dtype(np.float32), DType.BF16: np.dtype(np.uint16),
    DType.F16: np.dtype(np.float16), DType.F64: np.dtype(np.float64), DType.I64: np.dtype(np.int64),
    DType.I32: np.dtype(np.int32), DType.I16: np.dtype(np.int16), DType.I8: np.dtype(np.int8),
    DType.U8: np.dtype(np.uint8), DType.BOOL: np.dtype(np.bool_)
}
_DTYPE = {kind: dtype for dtype, kind in _NUMPY.items() if dtype != DType.BF16}


def dtype_bytes(dtype: DType) -> int:
    """Bytes of one element."""
    return lib.nn_dtype_bytes(dtype)


class Tensor(Handle):
    """An n-dimensional array on a device; views share and keep alive what they view.

    On a CPU, numpy.asarray(tensor) and tensor.numpy() see its memory in place. DLPack passes it to
    and from other libraries without a copy: torch.from_dlpack(tensor), Tensor.from_dlpack(device,
    array).
    """

    def __init__(self, device: Device, shape: Sequence[int], dtype: DType = DType.F32) -> None:
        """Zeros of a shape."""
        owner = device._own()
        sizes = (c_int64 * len(shape))(*shape)
        made = receive(lib.nn_tensor_create, owner.pointer, DType(dtype), len(shape), sizes)
        self._adopt(owner, made, Guard())

    def _adopt(self, device: DeviceOwner, pointer: int, guard: Guard) -> None:
        self._owner = Owner(pointer, lib.nn_tensor_destroy, guard)
        self._device = device
        self._guard = guard
        info = make(nn_tensor_info_t)
        self._call(lib.nn_tensor_info, byref(info))
        self._dtype = DType(info.dtype)
        self._shape = _sizes(info.shape, info.ndim)
        self._strides = _sizes(info.strides, info.ndim)
        self._address = info.data or 0
        self._elements: int = info.elements

    @classmethod
    def _made(cls, device: DeviceOwner, pointer: int, guard: Optional[Guard] = None) -> Tensor:
        tensor = cls.__new__(cls)
        tensor._adopt(device, pointer, guard or Guard())
        return tensor

    @classmethod
    def from_numpy(cls, device: Device, array: npt.NDArray[Any],
                   dtype: Optional[DType] = None) -> Tensor:
        """Over an array's memory, without a copy; the array lives as long as the tensor and its
        views. dtype DType.BF16 takes the bits of an uint16 array."""
        if not isinstance(array, np.ndarray) or not array.flags.writeable:
            raise ArgumentError("from_numpy() takes a writable numpy array")
        kind = _DTYPE.get(array.dtype) if dtype is None else DType(dtype)
        if kind is None or kind not in _NUMPY or _NUMPY[kind] != array.dtype:
            raise ArgumentError(f"an array of {array.dtype} is no tensor of "
                                f"{'any dtype' if kind is None else kind.name}")
        if any(stride % array.dtype.itemsize for stride in array.strides):
            raise ArgumentError("the array's strides are not whole elements")
        return cls._import(device, _dlpack.lend(array, kind))

    @classmethod
    def from_dlpack(cls, device: Device, array: Any) -> Tensor:
        """Over the memory of whatever has __dlpack__(), or of a DLPack capsule, without a copy."""
        capsule = array.__dlpack__() if hasattr(array, "__dlpack__") else array
        try:
            managed = _dlpack.open_capsule(capsule)
        except ValueError:
            raise ArgumentError(f"{type(array).__name__} is no array that DLPack gives") from None
        tensor = cls._import(device, managed, owned=False)
        _dlpack.consume_capsule(capsule)
        return tensor

    @classmethod
    def _import(cls, device: Device, managed: int, owned: bool = True) -> Tensor:
        owner = device._own()
        try:
            pointer = receive(lib.nn_tensor_from_dlpack, owner.pointer, managed)
        except BaseException:
            if owned:
                _dlpack.delete(managed)
            raise
        return cls._made(owner, pointer)

    @classmethod
    def from_address(cls, device: Device, address: int, shape: Sequence[int],
                     dtype: DType = DType.F32, strides: Optional[Sequence[int]] = None) -> Tensor:
        """Over memory at an address, which must outlive the tensor, its views and its arrays.
        strides are in elements."""
        owner = device._own()
        sizes = (c_int64 * len(shape))(*shape)
        steps = None if strides is None else (c_int64 * len(shape))(*strides)
        return cls._made(
            owner,
            receive(lib.nn_tensor_wrap, owner.pointer, address, DType(dtype), len(shape), sizes,
                    steps))

    @property
    def dtype(self) -> DType:
        """Type of its elements."""
        self._own()
        return self._dtype

    @property
    def shape(self) -> Tuple[int, ...]:
        """Its sizes."""
        self._own()
        return self._shape

    @property
    def strides(self) -> Tuple[int, ...]:
        """Steps in elements."""
        self._own()
        return self._strides

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def elements(self) -> int:
        """Product of the sizes."""
        self._own()
        return self._elements

    @property
    def address(self) -> int:
        """Of its first element, in device memory."""
        self._own()
        return self._address

    def __repr__(self) -> str:
        return (
            f"<Tensor {self._dtype.name} {list(self._shape)}{' closed' if self.closed else ''}>")

    def slice(self, dim: int, begin: int, end: int) -> Tensor:
        """A view of elements begin to end - 1 of one dimension."""
        pointer = c_void_p()
        self._call(lib.nn_tensor_slice, dim, begin, end, byref(pointer))
        assert pointer.value is not None
        return self._made(self._device, pointer.value, self._guard)

    def numpy(self) -> npt.NDArray[Any]:
        """Its memory as an array, on a CPU. DType.BF16 shows as uint16: see float32()."""
        if self._device_kind() != _dlpack.CPU:
            raise UnsupportedError("numpy sees a CPU's memory alone; copy() brings a tensor there")
        kind = _NUMPY[self._dtype]
        if not self.elements:
            return np.empty(self._shape, kind)
        keeper = Owner(self._export(), _dlpack.delete)
        return np.asarray(_dlpack.Exported(keeper, self._address, self._shape, self._strides, kind))

    def __array__(self, dtype: Optional[npt.DTypeLike] = None,
                  copy: Optional[bool] = None) -> npt.NDArray[Any]:
        wanted = None if dtype is None else np.dtype(dtype)
        if self.dtype == DType.BF16 and wanted == np.float32 and copy is not False:
            return self.float32()
        array = self.numpy()
        if wanted is not None and wanted != array.dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} as {wanted} is a copy")
            return array.astype(wanted)
        return array.copy() if copy else array

    def copy(self) -> npt.NDArray[Any]:
        """A copy as a row-major array, from any device."""
        array = np.empty(self.shape, _NUMPY[self._dtype])
        self._call(lib.nn_tensor_copy_out, array.ctypes.data, array.nbytes)
        return array

    def float32(self) -> npt.NDArray[np.float32]:
        """A copy in float32; from DType.BF16 it is exact."""
        array = self.copy()
        if self._dtype == DType.BF16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)

    def assign(self, values: npt.ArrayLike) -> None:
        """Fills it with values of its shape and kind; DType.BF16 takes uint16."""
        array = np.asarray(values)
        if array.shape != self.shape:
            raise ArgumentError(f"values of shape {list(array.shape)} for a tensor of "
                                f"{list(self._shape)}")
        if not np.can_cast(array.dtype, _NUMPY[self._dtype], "same_kind"):
            raise ArgumentError(f"values of {array.dtype} for a tensor of {self._dtype.name}")
        array = np.ascontiguousarray(array, _NUMPY[self._dtype])
        self._call(lib.nn_tensor_copy_in, array.ctypes.data, array.nbytes)

    def _export(self) -> int:
        managed = c_void_p()
        self._call(lib.nn_tensor_to_dlpack, byref(managed))
        assert managed.value is not None
        return managed.value

    def __dlpack__(self, *, stream: Any = None, max_version: Optional[Tuple[int, int]] = None,
                   dl_device: Optional[Tuple[int, int]] = None, copy: Optional[bool] = None) -> Any:
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError("a tensor is exported to its own device alone")
        if copy:
            raise BufferError("a tensor is exported without a copy")
        if self._device_kind() != _dlpack.CPU and self.elements:
            # A GPU's work may still be on its way: a copy to the host waits for it, whatever the
            # consumer's stream.
            first = self
            for dim in range(self.ndim):
                first = first.slice(dim, 0, 1)
            first.copy()
        return _dlpack.to_capsule(self._export())

    def __dlpack_device__(self) -> Tuple[int, int]:
        self._own()
        name = self._device.name
        return self._device_kind(), int(name[5:]) if name.startswith("cuda:") else 0

    def _device_kind(self) -> int:
        return _dlpack.CUDA if self._device.name.startswith("cuda:") else _dlpack.CPU


def _sizes(address: Optional[int], count: int) -> Tuple[int, ...]:
    if not address or not count:
        return ()
    return tuple((c_int64 * count).from_address(address))
