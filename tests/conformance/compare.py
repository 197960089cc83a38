"""How two results are compared, and within what.

The distance of two tensors is the largest difference of two elements over the largest element of
the reference: the maximum norm of the difference, relative to that of the tensor."""

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
# bf16 and fp16, times the usual error of a pass whose roundings are drawn (rounding.py). Rounding
# to nearest in the same places leaves 0.71 of it, since it has half the variance. But each is
# chance, the more so the fewer independent errors are in a tensor's: with three of them one tensor
# in 40,000 is beyond twice the usual error of drawn roundings, of which the suite has some 6,300. A
# loss is a single number, of which one in 40,000 is beyond 3.
HALF = 2
HALF_LOSS = 3
# Of all tensors of a model together less is chance: the median of their errors may be what rounding
# to nearest leaves of a drawn pass's median that is so many standard deviations above their mean.
# These are 0.05 to 0.1 of it but where activations are cut off (clamps): whole passes differ there
# by where roundings fell, and medians by 0.1 to 0.5. Sums of 16 bits do not stay within it.
HALF_MEDIAN = 0.5**0.5
MEDIAN_SPREAD = 4


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


def rounded(what: str, ours: dict, drawn: list[dict], exact: dict) -> dict[str, float]:
    """Tensors of a pass in 16 bits against exact ones: of each the share that its error, as a norm,
    has of the root mean square of those of drawn passes."""
    same_names(what, ours, exact)
    shares, drawn_shares = {}, []
    for name, tensor in exact.items():
        errors = np.array([error(one[name], tensor) for one in drawn])
        usual, found = np.sqrt(np.mean(errors**2)), error(ours[name], tensor)
        if usual == 0 and found == 0:  # an expert without tokens
            continue
        shares[name] = found / max(usual, 1e-30)
        drawn_shares.append(errors / max(usual, 1e-30))
        bound = HALF_LOSS if name == "loss" else HALF
        within(f"{what} {name}: its error", shares[name], bound)
    median = float(np.median(list(shares.values())))
    medians = np.median(drawn_shares, axis=0)
    far = medians.mean() + MEDIAN_SPREAD * medians.std(ddof=1)
    within(f"{what}: the median error", median, HALF_MEDIAN * far)
    return {"largest": max(shares.values()), "median": median / far}


def within(what: str, share: float, bound: float) -> None:
    if not share <= bound:
        raise Mismatch(
            f"{what} is {share:.2f} times that of drawn roundings, and {bound:.2f} is allowed"
        )


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The norm of the difference."""
    if np.shape(found) != np.shape(exact):
        raise Mismatch(f"shape {list(np.shape(found))} here, {list(np.shape(exact))} there")
    return float(np.linalg.norm((np.asarray(found, np.float64) - exact).ravel()))


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
