"""Devices: places to compute."""
from __future__ import annotations

import logging
from ctypes import byref
from typing import NamedTuple, Optional, Sequence

import numpy as np

from ._errors import ArgumentError
from ._handle import DeviceOwner, Handle, receive
from ._library import lib
from ._raw import (CpuPath, LogLevel, nn_device_info_t, nn_device_options_t, nn_log_fn, nn_memory_t)
from ._struct import make, name_bytes, read

_logger = logging.getLogger("moenn")
_levels = {LogLevel.ERROR: logging.ERROR, LogLevel.WARNING: logging.WARNING,
           LogLevel.INFO: logging.INFO, LogLevel.DEBUG: logging.DEBUG}


def _log(level: int, message: bytes, user: Optional[int]) -> None:
    try:
        _logger.log(_levels.get(LogLevel(level), logging.WARNING), "%s",
                    message.decode(errors="replace"))
    except Exception:  # a handler's failure is its own; it must not unwind through C
        pass


_log_callback = nn_log_fn(_log)  # lives as long as the process, and so longer than any device


class DeviceInfo(NamedTuple):
    """What a device is."""

    name: str
    model: str
    threads: int
    cpu_paths: CpuPath


class Memory(NamedTuple):
    """Device memory that handles hold."""

    current_bytes: int
    peak_bytes: int
    allocations: int


class Device(Handle):
    """A place to compute: "cpu", or "cuda:0", "cuda:1", ... Any thread may use it at any time.

    Its messages go to logging.getLogger("moenn").

    threads: that compute, the caller's among them, on a CPU; 0: one per core. cpu_paths: allowed
    ones; 0: MOENN_CPU from the environment, or all. affinity: logical CPU of each of the threads.
    tf32: whether products of fp32 matrices on a CUDA device may round what they multiply to TF32.
    """

    def __init__(self, name: str = "cpu", *, threads: int = 0,
                 cpu_paths: CpuPath = CpuPath.DEFAULT, affinity: Optional[Sequence[int]] = None,
                 tf32: bool = False) -> None:
        cpus = None if affinity is None else np.array(affinity, np.int32)
        if cpus is not None and len(cpus) != threads:
            raise ArgumentError(f"affinity names {len(cpus)} CPUs for {threads} threads")
        options = make(nn_device_options_t, threads=threads, cpu_paths=int(cpu_paths),
                       log_level=int(LogLevel.DEBUG), tf32=int(tf32),
                       affinity=None if cpus is None else cpus.ctypes.data)
        options.log = _log_callback
        owner = DeviceOwner(receive(lib.nn_device_create, name_bytes(name), byref(options)))
        self._owner = owner
        owner.name = self.info.name

    def _own(self) -> DeviceOwner:
        owner = super()._own()
        assert isinstance(owner, DeviceOwner)
        return owner

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        info = make(nn_device_info_t)
        self._call(lib.nn_device_info, byref(info))
        return DeviceInfo((info.name or b"").decode(errors="replace"),
                          (info.model or b"").decode(errors="replace"), info.threads,
                          CpuPath(info.cpu_paths))

    @property
    def memory(self) -> Memory:
        """Its memory counters."""
        memory = make(nn_memory_t)
        self._call(lib.nn_device_memory, byref(memory))
        return read(memory, Memory)

    def cancel(self, on: bool = True) -> None:
        """While on, calls that compute, load or save raise CancelledError; running ones within 50
        ms. To be called from another thread or a signal handler; cancel(False) makes it usable
        again."""
        owner = self._own()
        owner.cancelled = bool(on)
        lib.nn_device_cancel(owner.pointer, int(owner.cancelled))
