"""Sessions: a key-value cache and a sampler over a model."""
from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_int64
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError
from ._handle import Callback, Guard, Handle
from ._library import lib
from ._model import ExpertStats, Model, read_expert_stats
from ._raw import (Stop, nn_generate_options_t, nn_sample_options_t, nn_session_options_t,
                   nn_token_fn)
from ._struct import Ids, make, token_ids
from ._text import Tokenizer

Logits = npt.NDArray[np.float32]
_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; all zero: greedy. Filters apply in this order: repetition
    penalty, temperature, top-k, top-p, min-p. At a given length of a sequence the choice depends on
    seed alone."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 0.0
    seed: int = 0

    def _struct(self) -> nn_sample_options_t:
        return make(nn_sample_options_t, **asdict(self))


GREEDY = Sampling()


class Completion(NamedTuple):
    """What Session.complete() made, and why it ended."""

    tokens: Ids
    reason: Stop


class Session(Handle):
    """Sequences being served by a model; several sessions may share one model, and its training may
    go on beside them.

    batch: sequences held side by side. max_len: most tokens in a sequence; 0: the context.
    prefill_chunk: prompt tokens computed at once; 0: 256.
    """

    def __init__(self, model: Model, *, batch: int = 0, max_len: int = 0,
                 prefill_chunk: int = 0) -> None:
        options = make(nn_session_options_t, batch=batch, max_len=max_len,
                       prefill_chunk=prefill_chunk)
        model._own()
        self._device, self._config = model._device, model._config
        self._owner = model._make(self._device, lib.nn_session_create, byref(options),
                                  destroy=lib.nn_session_destroy, guard=Guard())
        self._batch = batch or 1
        self._max_len = max_len or self._config.context

    def prefill(self, tokens: npt.ArrayLike, sequence: int = 0) -> Logits:
        """Appends tokens to a sequence; the logits [vocab_size] after the last."""
        ids = token_ids(tokens).reshape(-1)
        logits = np.empty(self._config.vocab_size, np.float32)
        self._long(self._device, lib.nn_session_prefill, sequence, ids.ctypes.data, ids.size,
                   logits.ctypes.data)
        return logits

    def decode(self, tokens: npt.ArrayLike) -> Logits:
        """Appends one token to each sequence, a negative one to none; the logits [batch,
        vocab_size], zero for sequences left alone."""
        ids = token_ids(tokens).reshape(-1)
        if ids.size != self._batch:
            raise ArgumentError(f"{ids.size} tokens for the session's {self._batch} sequences")
        logits = np.zeros((self._batch, self._config.vocab_size), np.float32)
        self._long(self._device, lib.nn_session_decode, ids.ctypes.data, logits.ctypes.data)
        return logits

    def length(self, sequence: int = 0) -> int:
        """Tokens in a sequence."""
        return self._value(lib.nn_session_length, sequence)

    def truncate(self, length: int = 0, sequence: int = 0) -> None:
        """Shortens a sequence to its first tokens."""
        self._call(lib.nn_session_truncate, sequence, length)

    def sample(self, sampling: Sampling = GREEDY, sequence: int = 0) -> int:
        """Chooses a token from the logits after a sequence's last one, without appending it."""
        options, token = sampling._struct(), c_int32()
        self._call(lib.nn_session_sample, sequence, byref(options), byref(token))
        return token.value

    def generate(self, prompt: npt.ArrayLike = _NONE, *, sampling: Sampling = GREEDY,
                 max_tokens: int = 0, stop_ids: Sequence[int] = (),
                 sequence: int = 0) -> Generation:
        """Appends a prompt, which may be empty when the sequence is not, and makes tokens one by
        one as they are asked for. max_tokens 0: as many as fit. stop_ids end the text and are not
        part of it."""
        return Generation(self,
                          token_ids(prompt).reshape(-1), sampling, max_tokens, stop_ids, sequence)

    def write(self, tokenizer: Tokenizer, prompt: Union[str, bytes] = "", *,
              sampling: Sampling = GREEDY, max_tokens: int = 0, stop_ids: Sequence[int] = (),
              sequence: int = 0) -> Iterator[str]:
        """As generate(), from text to text: pieces of whole characters as they come."""
        return tokenizer.stream(self.generate(
            tokenizer.encode(prompt), sampling=sampling, max_tokens=max_tokens, stop_ids=stop_ids,
            sequence=sequence))

    def complete(self, prompt: npt.ArrayLike = _NONE, *, sampling: Sampling = GREEDY,
                 max_tokens: int = 0, stop_ids: Sequence[int] = (), sequence: int = 0,
                 on_token: Optional[Callable[[int, int], Any]] = None) -> Completion:
        """As generate(), all tokens in one call. on_token(token, index) hears of each, and ends the
        text by returning true."""
        ids = token_ids(prompt).reshape(-1)
        stops = token_ids(list(stop_ids))
        # so that the context ends it
        room = max(0, self._max_len - self.length(sequence) - ids.size) + 2
        tokens = np.empty(min(max_tokens, room) if max_tokens > 0 else room, np.int32)
        choice = sampling._struct()
        options = make(nn_generate_options_t, sampling=ctypes.addressof(choice),
                       max_tokens=max_tokens, stop_ids=stops.ctypes.data, stop_count=stops.size)
        callback = Callback(on_token or (lambda token, index: False))
        if on_token is not None:
            options.on_token = nn_token_fn(callback)
        count, reason = c_int64(), c_int32()
        with callback:
            self._long(self._device, lib.nn_session_generate, sequence, ids.ctypes.data, ids.size,
                       byref(options), tokens.ctypes.data, tokens.size, byref(count), byref(reason))
        return Completion(tokens[:count.value].copy(), Stop(reason.value))

    def expert_stats(self, layer: int) -> ExpertStats:
        """Expert use of one layer over this session's calls since its creation."""
        return read_expert_stats(self, lib.nn_session_expert_stats, layer, self._config)


class Generation(Iterator[int]):
    """Tokens as they are made. reason tells why they ended, and is None until then.

    The last token is appended to the sequence when the next one is asked for. So whoever stops
    early goes on with the last token as the prompt.
    """

    def __init__(self, session: Session, prompt: Ids, sampling: Sampling, max_tokens: int,
                 stop_ids: Sequence[int], sequence: int) -> None:
        if max_tokens < 0:
            raise ArgumentError(f"max_tokens is {max_tokens}")
        self.reason: Optional[Stop] = None
        self._session = session
        self._next = prompt
        self._sampling = sampling
        self._left = max_tokens or -1
        self._stop_ids = list(stop_ids)
        self._sequence = sequence

    def __next__(self) -> int:
        if self.reason is not None:
            raise StopIteration
        session, sequence = self._session, self._sequence
        length = session.length(sequence)
        try:
            made = session.complete(self._next, sampling=self._sampling, max_tokens=1,
                                    stop_ids=self._stop_ids, sequence=sequence)
        except BaseException:
            if not session.closed and session.length(sequence) != length:
                self._next = _NONE  # it is appended; the same token follows when asked again
            raise
        if not made.tokens.size:
            self.reason = made.reason
            raise StopIteration
        self._next = made.tokens
        self._left -= 1
        if self._left == 0:
            self.reason = Stop.LENGTH
        elif session.length(sequence) == session._max_len:
            self.reason = Stop.CONTEXT
        return int(made.tokens[0])
