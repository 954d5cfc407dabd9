"""Learning rate and weight decay as functions of the optimiser step alone."""

import math


def cosine(step: float, steps: float, first: float, last: float) -> float:
    """A half cosine from `first` at step 0 to `last` at the last of `steps` steps."""
    done = min(1.0, max(0.0, step / max(1, steps - 1)))
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, last: float) -> float:
    """Linear growth over `warmup` steps, then a half cosine from `peak` down to `last`.

    Args:
        step: Counted from 0.
        steps: Of the whole training.
        warmup: Steps before `peak` is reached; the first of them already moves.
        peak: Value at step `warmup`.
        last: Value at the last step.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(step - warmup, steps - warmup, peak, last)
