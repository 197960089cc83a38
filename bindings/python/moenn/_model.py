"""Models: parameters, files and training passes."""
from __future__ import annotations

import os
from ctypes import byref, c_void_p
from dataclasses import replace
from typing import Any, Callable, List, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from ._config import Config, config_of
from ._device import Device
from ._errors import ArgumentError
from ._handle import Callback, DeviceOwner, Guard, Handle, Owner, receive, run
from ._library import lib
from ._raw import (DType, Recompute, nn_expert_stats_t, nn_file_options_t, nn_loss_t,
                   nn_model_config_t, nn_progress_fn, nn_train_options_t)
from ._struct import batch_ids, make, name_bytes, path_bytes
from ._tensor import Tensor

Path = Union[str, "os.PathLike[str]"]
Progress = Callable[[int, int], Any]


class Loss(NamedTuple):
    """Result of a forward pass with targets, in nats."""

    loss: float
    aux_loss: float
    z_loss: float
    targets: int


class ExpertStats(NamedTuple):
    """How evenly one layer's experts were used; counts and mean_prob are per expert."""

    tokens: int
    dropped: int
    entropy: float
    max_load: float
    counts: npt.NDArray[np.int64]
    mean_prob: npt.NDArray[np.float64]


class Model(Handle):
    """A configuration and its parameters; gradients once prepare() was called.

    A model, its optimizers and its parameters' tensors take turns when threads share them; sessions
    may run beside its training.
    """

    def __init__(self, device: Device, config: Union[Config, str], *, dtype: DType = DType.F32,
                 seed: int = 0) -> None:
        """With random weights; config may be a preset's name. Same seed, same bits."""
        if not 0 <= seed < 2**64:
            raise ArgumentError(f"seed is {seed}; it goes from 0 to 2**64 - 1")
        struct = config_of(config)._struct()
        self._open(device, lib.nn_model_create, byref(struct), DType(dtype), seed)

    @classmethod
    def load(cls, device: Device, folder: Path, *, dtype: DType = DType.FILE,
             progress: Optional[Progress] = None) -> Model:
        """Reads a Hugging Face folder. dtype DType.FILE: that of the file. progress(done, total)
        hears of bytes, and cancels by returning true."""
        return cls._read(lib.nn_model_load, device, folder, dtype, progress)

    @classmethod
    def load_llmc(cls, device: Device, path: Path, *, dtype: DType = DType.FILE,
                  progress: Optional[Progress] = None) -> Model:
        """Reads a model checkpoint of llm.c."""
        return cls._read(lib.nn_model_load_llmc, device, path, dtype, progress)

    @classmethod
    def _read(cls, function: Callable[..., int], device: Device, path: Path, dtype: DType,
              progress: Optional[Progress]) -> Model:
        model = cls.__new__(cls)
        name, files = path_bytes(path), _Files(progress)
        with files.callback:
            model._open(device, function, name, DType(dtype), byref(files.options))
        return model

    def _open(self, device: Device, function: Callable[..., int], *arguments: Any) -> None:
        owner, guard = device._own(), Guard()
        self._owner = run(owner, lambda: Owner(receive(function, owner.pointer, *arguments),
                                               lib.nn_model_destroy, guard))
        self._device: DeviceOwner = owner
        self._guard = guard
        config = make(nn_model_config_t)
        self._call(lib.nn_model_config, byref(config))
        self._config = Config._read(config)

    def save(self, folder: Path, *, shard_bytes: int = 0,
             progress: Optional[Progress] = None) -> None:
        """Writes a Hugging Face folder, whole or not at all."""
        self._write(lib.nn_model_save, folder, progress, shard_bytes)

    def save_llmc(self, path: Path, *, progress: Optional[Progress] = None) -> None:
        """Writes a model checkpoint of llm.c, whole or not at all."""
        self._write(lib.nn_model_save_llmc, path, progress)

    def _write(self, function: Callable[..., int], path: Path, progress: Optional[Progress],
               shard_bytes: int = 0) -> None:
        name, files = path_bytes(path), _Files(progress, shard_bytes)
        with files.callback:
            self._long(self._device, function, name, byref(files.options))

    @property
    def config(self) -> Config:
        """A copy of its configuration, defaults filled in."""
        self._own()
        return replace(self._config)

    @property
    def parameter_names(self) -> List[str]:
        """Names of its parameters, as in its family's files."""
        return [(self._value(lib.nn_model_parameter_name, i) or b"").decode()
                for i in range(self._value(lib.nn_model_parameter_count))]

    def parameter(self, name: str) -> Tensor:
        """A parameter: the tensor views the model's memory, and writing it changes the model."""
        return self._tensor(lib.nn_model_parameter, name)

    def gradient(self, name: str) -> Tensor:
        """A parameter's gradient, F32; it views the gradients' memory."""
        return self._tensor(lib.nn_model_gradient, name)

    def _tensor(self, function: Callable[..., int], name: str) -> Tensor:
        pointer = c_void_p()
        self._call(function, name_bytes(name), byref(pointer))
        assert pointer.value is not None
        return Tensor._made(self._device, pointer.value, self._guard)

    def prepare(self, *, batch: int = 0, seq_len: int = 0,
                recompute: Recompute = Recompute.NONE) -> None:
        """Allocates gradients and activations for batches of up to [batch, seq_len]; 0: 1 and the
        context."""
        options = make(nn_train_options_t, batch=batch, seq_len=seq_len, recompute=recompute)
        self._long(self._device, lib.nn_model_prepare, byref(options))

    def unprepare(self) -> None:
        """Gives back what prepare() allocated."""
        self._long(self._device, lib.nn_model_prepare, None)

    def forward(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits [batch, seq_len, vocab_size] of [batch, seq_len] tokens."""
        ids = batch_ids(tokens)
        logits = np.empty((*ids.shape, self._config.vocab_size), np.float32)
        self._long(self._device, lib.nn_model_forward, ids.ctypes.data, *ids.shape,
                   logits.ctypes.data)
        return logits

    def evaluate(self, tokens: npt.ArrayLike, targets: npt.ArrayLike) -> Loss:
        """Loss of a batch. targets: the id that should follow each token; negative ones do not
        count."""
        return self._pass(lib.nn_model_evaluate, tokens, targets)

    def backward(self, tokens: npt.ArrayLike, targets: npt.ArrayLike, *,
                 scale: float = 1.0) -> Loss:
        """Loss of a batch, and its gradients times scale added to the model's."""
        return self._pass(lib.nn_model_backward, tokens, targets, scale)

    def accumulate(self, tokens: npt.ArrayLike, targets: npt.ArrayLike, *,
                   scale: float = 1.0) -> None:
        """As backward(), without the loss: a GPU's work is not waited for."""
        self._run(lib.nn_model_backward, tokens, targets, scale, None)

    def _pass(self, function: Callable[..., int], tokens: npt.ArrayLike, targets: npt.ArrayLike,
              *scale: float) -> Loss:
        loss = make(nn_loss_t)
        self._run(function, tokens, targets, *scale, byref(loss))
        return Loss(loss.loss, loss.aux_loss, loss.z_loss, loss.targets)

    def _run(self, function: Callable[..., int], tokens: npt.ArrayLike, targets: npt.ArrayLike,
             *rest: object) -> None:
        ids, wanted = batch_ids(tokens), batch_ids(targets)
        if ids.shape != wanted.shape:
            raise ArgumentError(f"tokens are {list(ids.shape)} and targets {list(wanted.shape)}")
        self._long(self._device, function, ids.ctypes.data, wanted.ctypes.data, *ids.shape, *rest)

    def zero_grad(self) -> None:
        """Sets all gradients to zero."""
        self._call(lib.nn_model_zero_grad)

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by: 1 unless parameters are DType.F16."""
        return self._value(lib.nn_model_loss_scale)

    def expert_stats(self, layer: int) -> ExpertStats:
        """Expert use of one layer since the last reset, over forward, evaluate and backward
        calls."""
        return read_expert_stats(self, lib.nn_model_expert_stats, layer, self._config)

    def reset_expert_stats(self) -> None:
        """Sets every layer's expert counters to zero."""
        self._call(lib.nn_model_expert_stats_reset)


def read_expert_stats(handle: Handle, function: Callable[..., int], layer: int,
                      config: Config) -> ExpertStats:
    counts, probs = np.zeros(config.experts, np.int64), np.zeros(config.experts)
    stats = make(nn_expert_stats_t)
    handle._call(function, layer, counts.ctypes.data, probs.ctypes.data, byref(stats))
    return ExpertStats(stats.tokens, stats.dropped, stats.entropy, stats.max_load, counts, probs)


class _Files:
    """Options of reading and writing files, and the callback that they refer to."""

    def __init__(self, progress: Optional[Progress], shard_bytes: int = 0) -> None:
        self.callback = Callback(progress or (lambda done, total: False))
        self.options = make(nn_file_options_t, shard_bytes=shard_bytes)
        if progress is not None:
            self.options.progress = nn_progress_fn(self.callback)
