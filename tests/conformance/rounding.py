"""What rounding to 16 bits alone does to a pass: passes of transformers whose roundings are drawn.

One pass in bf16 against one in fp32 is one draw of chance, and says little of the size of errors: a
gradient that sums up to little, or of a few tokens, can be ten times nearer than it usually is.
Drawn roundings give as many passes over one batch as are wanted."""

from typing import Any

import peer
import torch
from batch import Batch, Result
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

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
        if isinstance(value, torch.Tensor) and value.dtype == self.dtype:
            return value.float()
        return torch.float32 if value is self.dtype else value

    def rounded(self, wide: torch.Tensor) -> torch.Tensor:
        bits, least = FORMS[self.dtype]
        step = torch.exp2((torch.frexp(wide).exponent.clamp(min=least) - bits).float())
        by_lot = wide + (torch.rand(wide.shape, generator=self.generator) - 0.5) * step
        return by_lot.to(self.dtype).where(wide.to(self.dtype) != wide, wide.to(self.dtype))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function.is_view or function._schema.is_mutable:
            return out
        if not isinstance(out, torch.Tensor) or out.dtype != self.dtype:
            return out
        wide = function(*tree_map(self.widened, args), **tree_map(self.widened, kwargs))
        return self.rounded(wide)


def passes(model: torch.nn.Module, batch: Batch, count: int) -> list[Result]:
    """Passes of a model of 16 bits, each with roundings of its own."""
    found = []
    for seed in range(count):
        with Drawn(model.dtype, seed):
            found.append(peer.run(model, batch))
    return found
