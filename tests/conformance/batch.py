"""What both sides are given, and what they give back."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Tokens [batch, length], and labels as transformers has them: that of the token itself, with
    -100 where none counts."""

    tokens: np.ndarray
    labels: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """As libmoenn has them: of each token the one that follows, -1 where none counts."""
        last = np.full((len(self.labels), 1), -1)
        return np.concatenate([np.maximum(self.labels[:, 1:], -1), last], axis=1)


@dataclass(frozen=True)
class Result:
    """Of a forward and a backward pass. loss: all that the gradients are of; aux: what the balance
    of the experts has in it."""

    logits: np.ndarray
    loss: float
    aux: float
    gradients: dict[str, np.ndarray]


@dataclass(frozen=True)
class Training:
    """AdamW as both sides run it."""

    steps: int = 3
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-3
    weight_decay: float = 0.1
    grad_clip: float = 1.0
