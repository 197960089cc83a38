"""The optimizer."""
from __future__ import annotations

from ctypes import byref, c_double, c_void_p

from ._handle import Handle
from ._library import lib
from ._model import Model, Path
from ._raw import Moment, nn_optim_options_t
from ._struct import make, name_bytes, path_bytes
from ._tensor import Tensor


class Optimizer(Handle):
    """AdamW for one model, which must be prepared for training. Zero means: beta1 0.9, beta2 0.95,
    eps 1e-8, no weight decay, no clip."""

    def __init__(self, model: Model, *, beta1: float = 0.0, beta2: float = 0.0, eps: float = 0.0,
                 weight_decay: float = 0.0, grad_clip: float = 0.0) -> None:
        options = make(nn_optim_options_t, beta1=beta1, beta2=beta2, eps=eps,
                       weight_decay=weight_decay, grad_clip=grad_clip)
        model._own()
        self._device, self._guard = model._device, model._guard
        self._owner = model._make(self._device, lib.nn_optim_create, byref(options),
                                  destroy=lib.nn_optim_destroy, guard=self._guard)

    def step(self, lr: float) -> float:
        """One update of all parameters from the model's gradients, which stay as they are. Returns
        the gradients' global norm before the clip."""
        norm = c_double()
        self._long(self._device, lib.nn_optim_step, lr, byref(norm))
        return norm.value

    def moment(self, name: str, moment: Moment) -> Tensor:
        """A moment of one parameter, F32; it views the optimizer's memory."""
        pointer = c_void_p()
        self._call(lib.nn_optim_moment, name_bytes(name), Moment(moment), byref(pointer))
        assert pointer.value is not None
        return Tensor._made(self._device, pointer.value, self._guard)

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return self._value(lib.nn_optim_steps)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._call(lib.nn_optim_set_steps, steps)

    def save(self, path: Path) -> None:
        """Writes its state to one safetensors file, whole or not at all."""
        self._long(self._device, lib.nn_optim_save, path_bytes(path))

    def load(self, path: Path) -> None:
        """Reads what save() wrote for a model of the same configuration."""
        self._long(self._device, lib.nn_optim_load, path_bytes(path))
