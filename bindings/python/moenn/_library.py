"""Finds and opens the shared object: what MOENN_LIBRARY names, else the one beside this file, else
the system's."""
from __future__ import annotations

import os
from pathlib import Path

from ._errors import BY_STATUS, MoennError
from ._raw import NN_ABI_VERSION, Library


def _open() -> Library:
    named = os.environ.get("MOENN_LIBRARY")
    bundled = Path(__file__).with_name("libmoenn.so")
    path = named or (str(bundled) if bundled.exists() else f"libmoenn.so.{NN_ABI_VERSION}")
    try:
        library = Library(path)
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"libmoenn cannot be used: {error} (MOENN_LIBRARY names the shared object)") from error
    if library.nn_abi_version() != NN_ABI_VERSION:
        raise ImportError(f"{path} has the binary interface {library.nn_abi_version()}, "
                          f"and this package is made for {NN_ABI_VERSION}")
    return library


lib = _open()


def failure(status: int) -> MoennError:
    """The exception of a status, with the message of the calling thread's last failure."""
    message = lib.nn_last_error().decode(errors="replace")
    kind = BY_STATUS.get(status)
    if kind is None:  # of a library newer than this package
        return MoennError(f"{lib.nn_status_name(status).decode()}: {message}")
    return kind(message)


def check(status: int) -> None:
    if status < 0:
        raise failure(status)


def version() -> str:
    """Release of the library that is running, as "major.minor.patch"."""
    return lib.nn_version().decode()
