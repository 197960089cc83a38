"""libmoenn's side, through its Python binding."""

import functools
from pathlib import Path

import moenn
import numpy as np
from batch import Batch, Result, Training


@functools.cache
def device() -> moenn.Device:
    """Opened by the first use: a process that was forked before has its own."""
    return moenn.Device(threads=1)


def read(folder: Path, dtype: moenn.DType = moenn.DType.FILE) -> moenn.Model:
    return moenn.Model.load(device(), folder, dtype=dtype)


def parameters(model: moenn.Model) -> dict[str, np.ndarray]:
    return {name: model.parameter(name).float32() for name in model.parameter_names}


def run(model: moenn.Model, batch: Batch) -> Result:
    """Forward and backward."""
    model.prepare(batch=batch.tokens.shape[0], seq_len=batch.tokens.shape[1])
    model.zero_grad()
    loss = model.backward(batch.tokens, batch.targets)
    return Result(
        logits=model.forward(batch.tokens),
        loss=loss.loss + loss.aux_loss + loss.z_loss,
        aux=loss.aux_loss,
        gradients={
            name: model.gradient(name).copy() / np.float32(model.loss_scale)
            for name in model.parameter_names
        },
    )


def greedy(model: moenn.Model, prompt: np.ndarray, count: int) -> list[int]:
    """The likeliest token, count times; the prompt goes in by pieces."""
    with moenn.Session(model, max_len=len(prompt) + count, prefill_chunk=3) as session:
        return session.complete(prompt, max_tokens=count).tokens.tolist()


def last_logits(model: moenn.Model, tokens: np.ndarray) -> np.ndarray:
    with moenn.Session(model, max_len=len(tokens)) as session:
        return session.prefill(tokens)


def train(model: moenn.Model, batch: Batch, how: Training) -> dict[str, np.ndarray]:
    """AdamW steps on one batch; the change of each parameter."""
    start = parameters(model)
    model.prepare(batch=batch.tokens.shape[0], seq_len=batch.tokens.shape[1])
    adamw = moenn.Optimizer(
        model,
        beta1=how.beta1,
        beta2=how.beta2,
        eps=how.eps,
        weight_decay=how.weight_decay,
        grad_clip=how.grad_clip,
    )
    for _ in range(how.steps):
        model.zero_grad()
        model.backward(batch.tokens, batch.targets)
        adamw.step(how.lr)
    return {name: value - start[name] for name, value in parameters(model).items()}
