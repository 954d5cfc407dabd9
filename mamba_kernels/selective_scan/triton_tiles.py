"""What the Triton kernels of the selective scan are made of: where a program works, what it loads
and stores there, and one step of the recurrence. `triton_kernels` has the layout that they share.

Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (the language of Triton has no types, and joins tuples by + alone)
from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Place(NamedTuple):
    """Where a program works.

    Args:
        first: Its first channel.
        d: Its channels from there, (D,).
        owned: Which of them exist, (D,).
        n: Its states, (NO, NI).
        row: Its row (b, group) of weights.
        order: Tokens in the order of a forward scan, (l,). No pointer if that is their own order.
        tokens: Number of tokens, l.
    """

    first: tl.tensor
    d: tl.tensor
    owned: tl.tensor
    n: tl.tensor
    row: tl.tensor
    order: tl.tensor
    tokens: tl.tensor


class Chunk(NamedTuple):
    """T tokens.

    Args:
        step: Step of the first in a forward scan.
        origin: The token from which to count them.
        token: The tokens from there, (1, T).
        here: Which elements of a sequence exist, (D, T).
    """

    step: tl.tensor
    origin: tl.tensor
    token: tl.tensor
    here: tl.tensor


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to float32 accuracy: log1p(e) = 2 atanh(e / (2 + e)) by its series."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1 / 13 * q + 1 / 11
    series = series * q + 1 / 9
    series = series * q + 1 / 7
    series = series * q + 1 / 5
    series = series * q + 1 / 3
    return tl.maximum(x, 0.0) + 2.0 * s * (series * q + 1.0)


@triton.jit
def unstack(x, REVERSE: tl.constexpr):
    """(D, 4) -> a tuple of 4 (D,), in the order of the scan."""
    low, high = tl.split(tl.permute(tl.reshape(x, x.shape[0], 2, 2), 0, 2, 1))
    x0, x1 = tl.split(low)
    x2, x3 = tl.split(high)
    return (x3, x2, x1, x0) if REVERSE else (x0, x1, x2, x3)


@triton.jit
def stack(xs, REVERSE: tl.constexpr):
    """The inverse of `_unstack`."""
    x0, x1, x2, x3 = (xs[3], xs[2], xs[1], xs[0]) if REVERSE else xs
    x = tl.permute(tl.join(tl.join(x0, x1), tl.join(x2, x3)), 0, 2, 1)
    return tl.reshape(x, x.shape[0], 4)


@triton.jit
def place_of(
    order, tokens, channels, blocks, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """The `Place` of this program, with tiles (NO, NI, D) and so many blocks to a group."""
    groups = tl.num_programs(0) // blocks
    in_group, group = channels // groups, tl.program_id(0) // blocks
    first, d = tl.program_id(0) % blocks * D, tl.arange(0, D)
    n = tl.arange(0, NO)[:, None] * NI + tl.arange(0, NI)
    row = tl.program_id(1).to(tl.int64) * groups + group
    base = (group * in_group + first).to(tl.int64)
    order = row if order is None else order  # tuples of Triton before 3.5 hold no None
    return Place(base, d, first + d < in_group, n, row, order, tokens)


@triton.jit
def in_state(place, channels, states):
    """Offsets of this program's tile in a state (d, n), and which elements exist."""
    offsets = as_d(place.d) * states + as_n(place.n)
    return place.first * states + offsets, as_d(place.owned) & (as_n(place.n) < states)


@triton.jit
def tile_of(NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr):
    """Offsets in a tile kept for later, in the order that threads read fastest."""
    outer = tl.arange(0, NO)[:, None, None] * D + tl.arange(0, D)
    return outer * NI + tl.arange(0, NI)[:, None]


@triton.jit
def token_of(step, place):
    """The token at a step of a forward scan; beyond the end, a token beyond the end."""
    if place.order.dtype.is_ptr():
        inside = step < place.tokens
        return tl.load(place.order + step, mask=inside, other=place.tokens).to(tl.int64)
    else:
        return step.to(tl.int64)


@triton.jit
def steps_of(tokens, T: tl.constexpr):
    """Tokens of all chunks."""
    return tl.cdiv(tokens, T) * T


@triton.jit
def chunk_of(i, place, T: tl.constexpr, REVERSE: tl.constexpr):
    """The chunk that is scanned after `i` tokens."""
    step = steps_of(place.tokens, T) - T - i if REVERSE else i
    t = tl.arange(0, T)[None, :]
    here = place.owned[:, None] & (step + t < place.tokens)
    if place.order.dtype.is_ptr():
        return Chunk(step, tl.full([], 0, tl.int64), token_of(step + t, place), here)
    else:
        return Chunk(step, step.to(tl.int64), t, here)


@triton.jit
def weights_at(packed, row, s, place, chunk, REVERSE: tl.constexpr):
    """Pointers to the weights in a row of the s-th token that a chunk scans, (NO, NI)."""
    T: tl.constexpr = chunk.token.shape[1]
    token = token_of(chunk.step + (T - 1 - s if REVERSE else s), place)
    token += row * steps_of(place.tokens, T)
    return packed + token * (place.n.shape[0] * place.n.shape[1]) + place.n


@triton.jit
def sequence_at(sequence, place, chunk):
    """Pointers to elements (D, T) of a sequence."""
    base = sequence[0] + tl.program_id(1).to(tl.int64) * sequence[1]
    base += place.first * sequence[2] + chunk.origin * sequence[3]
    return base + place.d[:, None] * sequence[2] + chunk.token * sequence[3]


@triton.jit
def load(sequence, place, chunk):
    """A chunk of a sequence, (D, T) float32, zero where nothing exists."""
    return tl.load(sequence_at(sequence, place, chunk), mask=chunk.here, other=0.0).to(tl.float32)


@triton.jit
def store(sequence, place, chunk, x):
    """Put (D, T) in a chunk of a sequence, in its dtype, where elements exist."""
    element = sequence[0].dtype.element_ty
    tl.store(sequence_at(sequence, place, chunk), x.to(element), mask=chunk.here)


@triton.jit
def per_channel(x, place):
    """(d,) -> (D, 1), zeros if it is None."""
    if x is None:
        return tl.zeros_like(place.d).to(tl.float32)[:, None]
    else:
        own = tl.load(x + place.first + place.d, mask=place.owned, other=0.0)
        return own.to(tl.float32)[:, None]


@triton.jit
def step_size(delta, bias, place, chunk, SOFTPLUS: tl.constexpr):
    """Step size before softplus, and after it with 0 for what does not exist; (D, T)."""
    raw = load(delta, place, chunk) + bias
    return raw, tl.where(chunk.here, softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def as_d(x):
    """(D,) -> against tiles."""
    return x[None, None, :]


@triton.jit
def as_n(x):
    """(NO, NI) -> against tiles."""
    return x[:, :, None]


@triton.jit
def over_states(x):
    """Sum of a tile (NO, NI, D) over states: (D,)."""
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def over_channels(x):
    """Sum of a tile (NO, NI, D) over channels: (NO, NI)."""
    return tl.sum(x, 2)


@triton.jit
def advance(
    h, i, u, delta, bias, rates, B, place,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Scan the chunk after `i` tokens from state `h`: states around its steps, a tuple of T + 1."""
    chunk = chunk_of(i, place, T, REVERSE)
    dt = step_size(delta, bias, place, chunk, SOFTPLUS)[1]
    dts = unstack(dt, REVERSE)
    xs = unstack(dt * load(u, place, chunk), REVERSE)
    around = (h,)
    for s in tl.static_range(T):
        Bt = tl.load(weights_at(B, place.row, s, place, chunk, REVERSE))
        h = tl.exp2(as_d(dts[s]) * rates) * h + as_d(xs[s]) * as_n(Bt)
        around = around + (h,)
    return around


@triton.jit
def segment_of(index, tokens, segment, T: tl.constexpr):
    """Where a segment starts and stops, in tokens scanned before."""
    first = index * segment
    return first, tl.minimum(first + segment, steps_of(tokens, T))


@triton.jit
def row_of(i):
    """Index of this batch entry in the i-th item of an array (items, b, ...)."""
    return tl.cast(i, tl.int64) * tl.num_programs(1) + tl.program_id(1)
