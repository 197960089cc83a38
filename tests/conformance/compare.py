"""How two results are compared, and within what.

The distance of two tensors is the largest difference of two elements over the largest element of
the reference: the maximum norm of the difference, relative to that of the tensor."""

import re

import numpy as np

# fp32: sums of up to some hundred products, in another order, through every layer. Each rounds by
# 6e-8 of its largest part, so they leave some 1e-6; what is wrong in a formula leaves 1e-3 or more.
LOGITS = 2e-5
# The backward pass is twice as deep, and a gradient is often small beside the terms it is a sum of.
GRADIENTS = 1e-4
# AdamW divides a gradient by its size and eps: an error of the gradient, some 1e-6 of its largest
# element, becomes at most that over eps of an update, which is near 1. Compared is what the steps
# changed, not the parameter, in which it would drown.
UPDATES = 5e-4
# bf16 and fp16, times the distance of transformers' own pass in the type. Both round alike, theirs
# in more places; but the largest of some hundred errors is chance: over 400 random models ours went
# up to 2.2 times theirs.
HALF = 3


class Mismatch(AssertionError):
    """What differs, and how much."""


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of a result from its reference; two tensors of zeros are equal."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise Mismatch(f"shape {list(ours.shape)} here, {list(theirs.shape)} there")
    error = np.abs(ours - theirs).max(initial=0.0)
    if error == 0:
        return 0.0
    scale = np.abs(theirs).max()
    return float(error / scale) if scale > 0 else float("inf")


def close(what: str, ours: np.ndarray, theirs: np.ndarray, bound: float) -> float:
    """The distance, which must not be above the bound, nor NaN."""
    found = distance(ours, theirs)
    if not found <= bound:
        where = np.unravel_index(np.argmax(np.abs(np.asarray(ours) - theirs)), np.shape(theirs))
        at, here, there = (
            [int(i) for i in where],
            np.asarray(ours)[where],
            np.asarray(theirs)[where],
        )
        raise Mismatch(
            f"{what}: differs by {found:.2e} of its largest element, and {bound:.2e} is allowed; "
            f"at {at} it is {here:.9g} here and {there:.9g} there"
        )
    return found


def all_close(what: str, ours: dict, theirs: dict, bound: float) -> float:
    """The largest distance among tensors of the same names."""
    same_names(what, ours, theirs)
    return max(close(f"{what} of {name}", ours[name], theirs[name], bound) for name in theirs)


def rounded(what: str, ours: dict, theirs: dict, exact: dict) -> float:
    """Tensors of a pass in 16 bits against exact ones, each within HALF of the largest distance
    that theirs has among the tensors of its kind, which have its name but for numbers of layers and
    experts. The largest distance, as a share of its bound."""
    same_names(what, ours, exact)
    bounds = {}
    for name in exact:
        bounds.setdefault(kind(name), []).append(distance(theirs[name], exact[name]))
    shares = [0.0]
    for name in exact:
        bound = HALF * max(bounds[kind(name)])
        shares.append(
            close(f"{what} of {name}", ours[name], exact[name], bound) / max(bound, 1e-30)
        )
    return max(shares)


def kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def same_names(what: str, ours, theirs) -> None:
    here, there = set(ours), set(theirs)
    if here != there:
        raise Mismatch(
            f"{what}: only here {sorted(here - there)}, only there {sorted(there - here)}"
        )


def same_bits(what: str, ours: dict, theirs: dict) -> None:
    """Every tensor equal to the last bit."""
    same_names(what, ours, theirs)
    for name in theirs:
        if not np.array_equal(ours[name], theirs[name]):
            raise Mismatch(f"{what}: {name} is not what the file holds")


def same_tokens(what: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        first = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
        raise Mismatch(f"{what}: token {first} is {ours[first]} here and {theirs[first]} there")
