"""What rounding to 16 bits alone does to a pass: passes of transformers whose roundings are drawn.

One pass in bf16 against one in fp32 is one draw of chance, and says little of the size of errors: a
gradient that sums up to little, or of a few tokens, can be ten times nearer than it usually is.
Drawn roundings give as many passes over one batch as are wanted."""

from functools import cache
from typing import Any

import peer
import torch
from batch import Batch, Result
from torch.utils._python_dispatch import TorchDispatchMode

# Bits of a number, the leading one with them, and frexp()'s exponent of the least normal number.
FORMS = {torch.bfloat16: (8, -125), torch.float16: (11, -13)}


class Drawn(TorchDispatchMode):
    """Operations on 16 bits, forward and backward, compute in fp32 what they compute, and round it
    up or down by lot, so that its expectation is exact. Rounding to nearest has half the variance.
    Results of fp32, several results at once (layer norm's) and what changes its operands in place
    are as they are, which makes bounds tighter."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def widened(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.dtype == self.dtype else value
        if isinstance(value, (list, tuple)):
            return [self.widened(each) for each in value]
        return torch.float32 if value is self.dtype else value

    def rounded(self, wide: torch.Tensor) -> torch.Tensor:
        bits, least = FORMS[self.dtype]
        step = torch.exp2(torch.frexp(wide).exponent.clamp_(min=least).sub_(bits))
        by_lot = torch.rand(wide.shape, generator=self.generator).sub_(0.5).mul_(step).add_(wide)
        nearest = wide.to(self.dtype)
        return by_lot.to(self.dtype).where(nearest != wide, nearest)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if not isinstance(out, torch.Tensor) or out.dtype != self.dtype or keeps(function):
            return out
        wide = {name: self.widened(value) for name, value in kwargs.items()}
        return self.rounded(function(*self.widened(args), **wide))


@cache
def keeps(function) -> bool:
    """Whether an operation returns what it was given, seen otherwise or changed in place."""
    return function.is_view or function._schema.is_mutable


def passes(model: torch.nn.Module, batch: Batch, count: int) -> list[Result]:
    """Passes of a model of 16 bits, each with roundings of its own."""
    found = []
    for seed in range(count):
        with Drawn(model.dtype, seed):
            out = peer.backward(model, batch)
        found.append(peer.result(model, out))
    return found
