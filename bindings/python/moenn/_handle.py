"""What all handles share: ownership, close, one thread at a time, and interruption of long calls.

An Owner holds one pointer and gives it back when the last reference to it goes: the handle's own,
that of a call under way, or that of another handle which needs it. So close() never pulls a pointer
from under a call, and nothing is given back twice.
"""
from __future__ import annotations

import os
import threading
from collections import deque
from ctypes import byref, c_void_p
from queue import SimpleQueue
from threading import get_ident
from types import TracebackType
from typing import Any, Callable, Deque, Generic, List, Optional, Tuple, Type, TypeVar

from ._errors import ClosedError, MoennError, StateError
from ._library import failure, lib

T = TypeVar("T")
Self = TypeVar("Self", bound="Handle")


class Guard:
    """One thread at a time for handles that the header counts as one.

    `lock` may be taken again by its own thread, as a signal handler does between two instructions
    of a call; `busy` is set while the library itself runs, so that a callback that uses the handle
    of its own call is refused. What is dropped meanwhile is given back afterwards.
    """

    __slots__ = ("lock", "busy", "dropped")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.busy = False
        self.dropped: Deque[Tuple[Callable[[int], None], int]] = deque()

    def give_back(self, destroy: Callable[[int], None], pointer: int) -> None:
        self.dropped.append((destroy, pointer))
        self.sweep()

    def sweep(self) -> None:
        # A lock is only ever taken by `with`: a signal handler that raises between acquire() and
        # try would leave it taken for ever. While the library runs its end sweeps; else no wait is
        # long.
        while self.dropped and not self.busy:
            with self.lock:
                if self.busy:
                    return
                try:
                    destroy, pointer = self.dropped.popleft()
                except IndexError:  # swept by another thread
                    return
                destroy(pointer)


class Owner:
    """Owns a pointer. A process that was forked off leaves its parent's alone."""

    __slots__ = ("pointer", "destroy", "guard", "process", "__weakref__")

    def __init__(self, pointer: int, destroy: Callable[[int], None],
                 guard: Optional[Guard] = None) -> None:
        self.pointer = pointer
        self.destroy = destroy
        self.guard = guard
        self.process = _process

    def __del__(self) -> None:
        if self.process is not _process:
            return
        if self.guard is None:
            self.destroy(self.pointer)
        else:
            self.guard.give_back(self.destroy, self.pointer)


class DeviceOwner(Owner):
    """A device, and whether the application asked to cancel what runs on it."""

    __slots__ = ("name", "cancelled")

    def __init__(self, pointer: int) -> None:
        super().__init__(pointer, lib.nn_device_destroy)
        self.name = ""
        self.cancelled = False


class Handle:
    """Something of the library's: a context manager that is given back by close(), or with its last
    reference. close() may be called at any time, in any order and more than once: what depends on a
    closed handle goes on working. Other calls after it raise ClosedError."""

    _owner: Optional[Owner] = None

    def close(self) -> None:
        """Gives the handle back, after the calls that are under way."""
        self._owner = None

    @property
    def closed(self) -> bool:
        return self._owner is None

    def __enter__(self: Self) -> Self:
        self._own()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.close()

    def _own(self) -> Owner:
        owner = self._owner
        if owner is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if owner.process is not _process:
            raise StateError(
                f"this {type(self).__name__} belongs to the parent process: after fork() "
                "a child makes handles of its own")
        return owner

    def _value(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that cannot take long, and gives its result."""
        owner = self._own()
        guard = owner.guard
        if guard is None:
            return function(owner.pointer, *arguments)
        with guard.lock:
            if guard.busy:
                raise StateError(
                    f"this {type(self).__name__} is in a call, whose callback may not use it")
            result = function(owner.pointer, *arguments)
        if guard.dropped:
            guard.sweep()
        return result

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        """As _value(), for a status."""
        status = self._value(function, *arguments)
        if status < 0:
            raise failure(status)

    def _long(self, device: DeviceOwner, function: Callable[..., int], *arguments: Any) -> None:
        """Calls a function that may take long or calls back. An exception that a signal handler
        raises meanwhile, such as KeyboardInterrupt, cancels it."""
        owner = self._own()
        guard = owner.guard
        assert guard is not None
        kind = type(self).__name__
        run(device, lambda: _guarded(guard, kind, function, owner.pointer, arguments))

    def _make(self, device: DeviceOwner, function: Callable[..., int], *arguments: Any,
              destroy: Callable[[int], None], guard: Guard) -> Owner:
        """Calls a function that may take long and whose last parameter receives a handle."""
        owner = self._own()
        outer = owner.guard
        assert outer is not None

        def make() -> Owner:
            pointer = c_void_p()
            _guarded(outer, type(self).__name__, function, owner.pointer,
                     (*arguments, byref(pointer)))
            assert pointer.value is not None
            return Owner(pointer.value, destroy, guard)

        return run(device, make)


def _guarded(guard: Guard, name: str, function: Callable[..., int], pointer: int,
             arguments: Tuple[Any, ...]) -> None:
    with guard.lock:
        if guard.busy:
            raise StateError(f"this {name} is in a call, whose callback may not use it")
        guard.busy = True
        try:
            status = function(pointer, *arguments)
        finally:
            guard.busy = False
        error = failure(status) if status < 0 else None
    guard.sweep()
    if error is not None:
        try:
            raise error
        finally:
            del error  # no cycle through the traceback


def receive(function: Callable[..., int], *arguments: Any) -> int:
    """Calls a function whose last parameter receives a handle."""
    pointer = c_void_p()
    status = function(*arguments, byref(pointer))
    if status < 0:
        raise failure(status)
    assert pointer.value is not None
    return pointer.value


class Callback:
    """Runs an application's function on the library's behalf: `with callback:` around the call.
    What the function raises stops the call and is raised again at its end."""

    __slots__ = ("function", "error")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.error: Optional[BaseException] = None

    def __call__(self, *arguments: Any) -> int:
        """1 to stop the library, 0 to go on."""
        try:
            return int(bool(self.function(*arguments[:-1])))  # the last is `user`
        except BaseException as error:  # it must not unwind through C
            self.error = error
            return 1

    def __enter__(self) -> None:
        self.error = None

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        raised, self.error = self.error, None
        if raised is not None and (error is None or isinstance(error, MoennError)):
            try:
                raise raised from None
            finally:
                del raised


# --------------------------------------------------------------------------------------------------
# Interruption. Python runs signal handlers on the main thread, between two of its instructions:
# never during a call into C. So the main thread lends its long calls to a worker thread and waits,
# which a signal does interrupt, unless another thread receives it or it comes just before: so the
# main thread wakes up now and then by itself. When a handler raises, the device's cancel flag is
# set, the call ends within 50 ms, the flag is restored, and the exception goes its way. A handler
# that does not raise just runs. Other threads, where Python never runs handlers, call directly.
# --------------------------------------------------------------------------------------------------

_LOOK = 0.1  # seconds that it waits at most


class _Job(Generic[T]):
    """A call that the worker makes. It keeps all that the call needs, should its caller go away."""

    def __init__(self, device: DeviceOwner, function: Callable[[], T]) -> None:
        self.device = device
        self.function = function
        self.result: List[T] = []
        self.error: Optional[BaseException] = None
        self.claimed = threading.Lock()
        self.ending = threading.Lock()  # between setting and restoring the cancel flag
        self.cancelled = self.finished = False
        self.done = threading.Lock()
        self.done.acquire()

    def work(self) -> None:
        if not self.claimed.acquire(False):
            return
        try:
            if not self.cancelled:
                self.result.append(self.function())
        except BaseException as error:
            self.error = error
        with self.ending:
            self.finished = True
            if self.cancelled:
                lib.nn_device_cancel(self.device.pointer, int(self.device.cancelled))
        self.done.release()

    def cancel(self) -> None:
        with self.ending:
            if not self.finished:
                self.cancelled = True
                lib.nn_device_cancel(self.device.pointer, 1)


_process = object()  # replaced in a child, which so knows what is its parent's
_main = threading.main_thread().ident
_inbox: "SimpleQueue[_Job[Any]]" = SimpleQueue()
_worker: Optional[threading.Thread] = None


def _work(inbox: "SimpleQueue[_Job[Any]]") -> None:
    while True:
        inbox.get().work()


def _start_worker() -> None:
    global _worker
    worker = threading.Thread(target=_work, args=(_inbox,), name="moenn", daemon=True)
    worker.start()
    _worker = worker


def _forked() -> None:
    global _process, _main, _inbox, _worker
    _process, _main, _inbox, _worker = object(), get_ident(), SimpleQueue(), None


os.register_at_fork(after_in_child=_forked)


def run(device: DeviceOwner, function: Callable[[], T]) -> T:
    """Runs a long call so that an exception of a signal handler cancels it."""
    if get_ident() != _main:
        return function()
    if _worker is None:
        try:
            _start_worker()
        except RuntimeError:  # the interpreter is ending
            return function()
    job = _Job(device, function)
    interruption: Optional[BaseException] = None
    handed_over = False
    while not job.finished:
        try:
            if not handed_over:
                _inbox.put(job)  # twice does no harm
                handed_over = True
            job.done.acquire(timeout=_LOOK)
        except BaseException as error:
            interruption = error
            job.cancel()
    failed, job.error = job.error, None  # no cycles through tracebacks, which would keep handles
    try:
        if interruption is not None:
            raise interruption
        if failed is not None:
            raise failed
        return job.result.pop()
    finally:
        del job, failed, interruption
