"""One exception for each status of the library."""
from __future__ import annotations

from typing import Dict, Type

from ._raw import Status


class MoennError(Exception):
    """A call into libmoenn failed; str() is the library's message: what was asked, what was found,
    what to do."""

    status: Status

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ArgumentError(MoennError, ValueError):
    """An argument is out of range, or inconsistent with another."""

    status = Status.ARGUMENT


class StructSizeError(MoennError):
    """The package and the shared object are of different releases."""

    status = Status.STRUCT_SIZE


class AllocationError(MoennError, MemoryError):
    """Memory could not be had; nothing was lost."""

    status = Status.MEMORY


class FileError(MoennError, OSError):
    """The operating system refused a file operation."""

    status = Status.IO

    def __str__(self) -> str:
        return self.message


class FormatError(MoennError, ValueError):
    """A file or text is not what its format requires."""

    status = Status.FORMAT


class UnsupportedError(MoennError):
    """Understood, but this library, build or device cannot do it."""

    status = Status.UNSUPPORTED


class StateError(MoennError, RuntimeError):
    """Calls in the wrong order, for example training before prepare()."""

    status = Status.STATE


class ClosedError(StateError):
    """Use of a handle after close()."""


class NotFoundError(MoennError, LookupError):
    """No preset, parameter, file or device of that name."""

    status = Status.NOT_FOUND


class NonfiniteError(MoennError, ArithmeticError):
    """A loss or gradient norm is not finite; the step was refused."""

    status = Status.NONFINITE


class CancelledError(MoennError):
    """Device.cancel() was called."""

    status = Status.CANCELLED


class CapacityError(MoennError):
    """The context or the cache is too small."""

    status = Status.CAPACITY


class DeviceError(MoennError):
    """A GPU refused a call, or is lost, and what lives on it can only be closed."""

    status = Status.DEVICE


BY_STATUS: Dict[int, Type[MoennError]] = {
    kind.status: kind for kind in (
        ArgumentError, StructSizeError, AllocationError, FileError, FormatError, UnsupportedError,
        StateError, NotFoundError, NonfiniteError, CancelledError, CapacityError, DeviceError)}
