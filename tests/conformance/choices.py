"""Random batches in which no rounding may choose other experts than exact numbers do: a choice that
hangs on the last bits says nothing of either program."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import peer
import torch
from batch import Batch
from cases import Case
from transformers.models.phimoe import modeling_phimoe

# A choice is clear whose distance from another one is so many times what bf16, of weights and of
# activations, commonly moves such distances by (the median of the batch). Of normal errors half are
# beyond the median and one in ten million beyond eight times it, and ours are smaller than theirs.
CLEAR = 8
ROUNDS = 2000


class Gaps:
    """How far each choice of experts in the passes over one batch was from another one: of every
    place where there is a choice, the least distance of each token [batch, length]."""

    def __init__(self, batch: int, length: int) -> None:
        self.shape = (batch, length)
        self.found: list[torch.Tensor] = []

    def add(self, gaps: torch.Tensor) -> None:
        """gaps: the tokens of the batch, of one layer or of several, and choices of each."""
        gaps = gaps.reshape(-1, *self.shape, gaps[0].numel()).amin((0, 3))
        self.found.append(gaps.nan_to_num(posinf=1e9))

    @contextmanager
    def watching(self):
        """Of the last that topk() chose from the best one left, and of what Phimoe's mixer does."""
        topk, mixer = torch.topk, modeling_phimoe.sparsemixer

        def watched(values, k, dim=-1, **options):
            if k < values.shape[dim]:
                best = topk(values.detach().float(), k + 1, dim=dim).values.movedim(dim, -1)
                self.add(best[..., -2] - best[..., -1])
            return topk(values, k, dim=dim, **options)

        def mixed(scores, jitter_eps, training, **options):
            self.add(mixer_gaps(scores.detach().float(), 2 * jitter_eps))
            return mixer(scores, jitter_eps, training, **options)

        method, torch.topk, torch.Tensor.topk = torch.Tensor.topk, watched, watched
        modeling_phimoe.sparsemixer = mixed
        try:
            yield
        finally:
            torch.topk, torch.Tensor.topk, modeling_phimoe.sparsemixer = topk, method, mixer


def mixer_gaps(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Phimoe takes the best score and then the next; at each turn those of the others count that
    are not further below than a threshold's part of the larger size. Distances of the choices from
    another one, and of each other score from the threshold."""
    best = scores.sort(dim=-1, descending=True).values
    found = []
    for turn in range(2):
        top, rest = best[:, turn : turn + 1], best[:, turn + 1 :]
        size = torch.maximum(rest.abs(), top)
        found += [top - rest[:, :1], (top - rest - threshold * size).abs()]
    return torch.cat(found, dim=1)


def gaps(model: torch.nn.Module, tokens: np.ndarray) -> list[torch.Tensor]:
    found = Gaps(*tokens.shape)
    with found.watching(), torch.no_grad():
        model(input_ids=torch.from_numpy(tokens))
    return found.found


def unclear(model: torch.nn.Module, rounded: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Which tokens have a choice that is not clear."""
    wrong = torch.zeros(tokens.shape, dtype=torch.bool)
    for gap, moved in zip(gaps(model, tokens), gaps(rounded, tokens)):
        wrong |= gap < CLEAR * (moved - gap).abs().median()
    return wrong.numpy()


def choose_batch(model: torch.nn.Module, case: Case) -> Batch:
    """Random tokens; those whose choices are not clear are drawn again until all are."""
    with tempfile.TemporaryDirectory() as folder:
        peer.write(model, Path(folder), "BF16")
        rounded = peer.read(Path(folder), "BF16")
    random = np.random.default_rng(case.seed)
    vocabulary = model.config.vocab_size
    tokens = random.integers(vocabulary, size=(case.batch, case.length))
    for _ in range(ROUNDS):
        wrong = unclear(model, rounded, tokens)
        if not wrong.any():
            labels = np.where(random.random(tokens.shape) < 0.15, -100, tokens)
            return Batch(tokens, labels)
        tokens[wrong] = random.integers(vocabulary, size=wrong.sum())
    raise AssertionError(f"{case.name}: no {tokens.shape} random tokens choose experts clearly")
