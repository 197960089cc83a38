"""The comparisons. Each takes both sides' models and a batch, raises Mismatch where they differ,
and returns the largest distances it met."""

from pathlib import Path

import compare
import here
import moenn
import numpy as np
import peer
import rounding
from batch import Batch, Result, Training
from layouts import ALL

# How many contexts the sequence has whose RoPE goes by its length.
STRETCHED = {moenn.RopeScaling.DYNAMIC: 1.5, moenn.RopeScaling.LONG: 1}
GREEDY_TOKENS, GREEDY_PROMPTS = 32, 16
TRAINING = Training()
# Passes with drawn roundings: even a single number's usual error is known within a fifth by them.
DRAWN = 16


def passes(ours: moenn.Model, theirs, batch: Batch) -> dict[str, float]:
    """Logits, loss, auxiliary loss and all gradients in fp32."""
    a, b = here.run(ours, batch), peer.run(theirs, batch)
    return {
        "logits": compare.close("logits", a.logits, b.logits, compare.LOGITS),
        "loss": compare.close("loss", a.loss, b.loss, compare.LOGITS),
        "aux": compare.close("auxiliary loss", a.aux, b.aux, compare.LOGITS),
        "gradients": compare.all_close("gradient", a.gradients, b.gradients, compare.GRADIENTS),
    }


def greedy(ours: moenn.Model, theirs) -> dict[str, float]:
    """32 tokens after a prompt of seven. Small random models soon repeat themselves: of many
    prompts the one with the liveliest text is taken."""
    prompts = np.random.default_rng(0).integers(ours.config.vocab_size, size=(GREEDY_PROMPTS, 7))
    texts = peer.greedy(theirs, prompts, GREEDY_TOKENS)
    distinct = [len(set(text)) for text in texts]
    liveliest = int(np.argmax(distinct))
    if distinct[liveliest] < 2:
        raise compare.Mismatch("greedy text: every prompt leads to one token over and over")
    compare.same_tokens(
        "greedy text",
        here.greedy(ours, prompts[liveliest], GREEDY_TOKENS),
        texts[liveliest].tolist(),
    )
    return {"distinct": distinct[liveliest]}


def stretched(ours: moenn.Model, theirs) -> float:
    """Logits after a sequence longer than the context, or with LongRoPE longer than the original
    context, with RoPE stretched to that length."""
    length = int(ours.config.context * STRETCHED[ours.config.rope_scaling])
    tokens = np.random.default_rng(1).integers(ours.config.vocab_size, size=length)
    return compare.close(
        "stretched logits",
        here.last_logits(ours, tokens),
        peer.last_logits(theirs, tokens),
        compare.LOGITS,
    )


def training(ours: moenn.Model, theirs, batch: Batch, how: Training = TRAINING) -> float:
    """What three steps of AdamW change in every parameter."""
    a, b = here.train(ours, batch, how), peer.train(theirs, batch, TRAINING)
    return compare.all_close("change", a, b, compare.UPDATES)


def saved(ours: moenn.Model, batch: Batch, folder: Path) -> float:
    """A model saved here and loaded there, by logits, loss and auxiliary loss; and loaded here."""
    ours.save(folder)
    again, theirs = here.read(folder), peer.read(folder)
    if again.config != ours.config:
        raise compare.Mismatch(f"saved: {again.config}, and before {ours.config}")
    compare.same_bits("saved and loaded here", here.parameters(again), here.parameters(ours))
    compare.same_bits("saved model", here.parameters(ours), peer.parameters(theirs))
    a, b = here.run(again, batch), peer.run(theirs, batch)
    compare.close("loss of the saved model", a.loss, b.loss, compare.LOGITS)
    compare.close("auxiliary loss of the saved model", a.aux, b.aux, compare.LOGITS)
    return compare.close("logits of the saved model", a.logits, b.logits, compare.LOGITS)


def layouts(ours: moenn.Model, theirs, folder: Path) -> None:
    """The same configuration and parameters from every way in which the model may be written."""
    for write in ALL:
        write(theirs, folder / write.__name__)
        again = here.read(folder / write.__name__)
        compare.same_bits(write.__name__, here.parameters(again), here.parameters(ours))
        if again.config != ours.config:
            raise compare.Mismatch(f"{write.__name__}: {again.config}, and before {ours.config}")


def types(theirs, folder: Path) -> None:
    """What files of every type hold, read in fp32, and fp32 rounded as it is read."""
    for dtype in peer.DTYPES:
        peer.write(theirs, folder / dtype, dtype)
        compare.same_bits(
            dtype + " file",
            here.parameters(here.read(folder / dtype, moenn.DType.F32)),
            peer.tensors(folder / dtype),
        )
    compare.same_bits(
        "F32 file as bf16",
        here.parameters(here.read(folder / "F32", moenn.DType.BF16)),
        peer.tensors(folder / "BF16"),
    )


def half(what: str, ours: moenn.Model, theirs, exact, batch: Batch) -> dict[str, float]:
    """A pass in 16 bits here against transformers' fp32 pass over the same weights: its error
    beside that of passes there whose roundings are drawn."""
    drawn = [tensors(one) for one in rounding.passes(theirs, batch, DRAWN)]
    a, reference = here.run(ours, batch), peer.run(exact, batch)
    return compare.rounded(what, tensors(a), drawn, tensors(reference))


def tensors(result: Result) -> dict[str, np.ndarray]:
    """All of a pass by names."""
    gradients = {f"gradient of {name}": value for name, value in result.gradients.items()}
    return {"logits": result.logits, "loss": np.array(result.loss), **gradients}
