"""The selective scan as Triton kernels: sequential in time, with the state in registers.

A program scans one block of D channels of one batch entry, or one segment of time of it. Its state
is a tile (NO, NI, D) of n outer times n inner states; a token has a (NO, NI) matrix of weights. Cut
this way, the compiler reads weights 16 bytes at a time and sums inside threads before across.

Time runs in chunks of T = 4 tokens, counted in the order of the scan, with their steps unrolled.
Tokens beyond the end have step size 0, which leaves the state as it is.

Grids are (blocks of channels, b, segments). A sequence (b, d, l) comes as the tuple of its tensor
and strides; what may be absent is then None. A is (d, n), times log2(e) for `exp2`. B, C and
their gradients are packed to (b, g, l or up to T - 1 more, NO * NI) float32.
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
def _softplus(x):
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
def _unstack(x, REVERSE: tl.constexpr):
    """(D, 4) -> a tuple of 4 (D,), in the order of the scan."""
    low, high = tl.split(tl.permute(tl.reshape(x, x.shape[0], 2, 2), 0, 2, 1))
    x0, x1 = tl.split(low)
    x2, x3 = tl.split(high)
    return (x3, x2, x1, x0) if REVERSE else (x0, x1, x2, x3)


@triton.jit
def _stack(xs, REVERSE: tl.constexpr):
    """The inverse of `_unstack`."""
    x0, x1, x2, x3 = (xs[3], xs[2], xs[1], xs[0]) if REVERSE else xs
    x = tl.permute(tl.join(tl.join(x0, x1), tl.join(x2, x3)), 0, 2, 1)
    return tl.reshape(x, x.shape[0], 4)


@triton.jit
def _place(
    order, tokens, channels, blocks, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    groups = tl.num_programs(0) // blocks
    in_group, group = channels // groups, tl.program_id(0) // blocks
    first, d = tl.program_id(0) % blocks * D, tl.arange(0, D)
    n = tl.arange(0, NO)[:, None] * NI + tl.arange(0, NI)
    row = tl.program_id(1).to(tl.int64) * groups + group
    base = (group * in_group + first).to(tl.int64)
    order = row if order is None else order  # tuples of Triton before 3.5 hold no None
    return Place(base, d, first + d < in_group, n, row, order, tokens)


@triton.jit
def _in_state(place, channels, states):
    """Offsets of this program's tile in a state (d, n), and which elements exist."""
    offsets = _d(place.d) * states + _n(place.n)
    return place.first * states + offsets, _d(place.owned) & (_n(place.n) < states)


@triton.jit
def _tile(NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr):
    """Offsets in a tile kept for later, in the order that threads read fastest."""
    outer = tl.arange(0, NO)[:, None, None] * D + tl.arange(0, D)
    return outer * NI + tl.arange(0, NI)[:, None]


@triton.jit
def _token(step, place):
    """The token at a step of a forward scan; beyond the end, a token beyond the end."""
    if place.order.dtype.is_ptr():
        inside = step < place.tokens
        return tl.load(place.order + step, mask=inside, other=place.tokens).to(tl.int64)
    else:
        return step.to(tl.int64)


@triton.jit
def _steps(tokens, T: tl.constexpr):
    """Tokens of all chunks."""
    return tl.cdiv(tokens, T) * T


@triton.jit
def _chunk(i, place, T: tl.constexpr, REVERSE: tl.constexpr):
    """The chunk that is scanned after `i` tokens."""
    step = _steps(place.tokens, T) - T - i if REVERSE else i
    t = tl.arange(0, T)[None, :]
    here = place.owned[:, None] & (step + t < place.tokens)
    if place.order.dtype.is_ptr():
        return Chunk(step, tl.full([], 0, tl.int64), _token(step + t, place), here)
    else:
        return Chunk(step, step.to(tl.int64), t, here)


@triton.jit
def _weights(packed, row, s, place, chunk, REVERSE: tl.constexpr):
    """Pointers to the weights in a row of the s-th token that a chunk scans, (NO, NI)."""
    T: tl.constexpr = chunk.token.shape[1]
    token = _token(chunk.step + (T - 1 - s if REVERSE else s), place)
    token += row * _steps(place.tokens, T)
    return packed + token * (place.n.shape[0] * place.n.shape[1]) + place.n


@triton.jit
def _at(sequence, place, chunk):
    """Pointers to elements (D, T) of a sequence."""
    base = sequence[0] + tl.program_id(1).to(tl.int64) * sequence[1]
    base += place.first * sequence[2] + chunk.origin * sequence[3]
    return base + place.d[:, None] * sequence[2] + chunk.token * sequence[3]


@triton.jit
def _load(sequence, place, chunk):
    return tl.load(_at(sequence, place, chunk), mask=chunk.here, other=0.0).to(tl.float32)


@triton.jit
def _store(sequence, place, chunk, x):
    element = sequence[0].dtype.element_ty
    tl.store(_at(sequence, place, chunk), x.to(element), mask=chunk.here)


@triton.jit
def _per_channel(x, place):
    """(d,) -> (D, 1), zeros if it is None."""
    if x is None:
        return tl.zeros_like(place.d).to(tl.float32)[:, None]
    else:
        own = tl.load(x + place.first + place.d, mask=place.owned, other=0.0)
        return own.to(tl.float32)[:, None]


@triton.jit
def _step_size(delta, bias, place, chunk, SOFTPLUS: tl.constexpr):
    """Step size before softplus, and after it with 0 for what does not exist; (D, T)."""
    raw = _load(delta, place, chunk) + bias
    return raw, tl.where(chunk.here, _softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def _d(x):
    """(D,) -> against tiles."""
    return x[None, None, :]


@triton.jit
def _n(x):
    """(NO, NI) -> against tiles."""
    return x[:, :, None]


@triton.jit
def _over_states(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _over_channels(x):
    return tl.sum(x, 2)


@triton.jit
def _advance(
    h, i, u, delta, bias, rates, B, place,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Scan the chunk after `i` tokens from state `h`: states around its steps, a tuple of T + 1."""
    chunk = _chunk(i, place, T, REVERSE)
    dt = _step_size(delta, bias, place, chunk, SOFTPLUS)[1]
    dts = _unstack(dt, REVERSE)
    xs = _unstack(dt * _load(u, place, chunk), REVERSE)
    around = (h,)
    for s in tl.static_range(T):
        Bt = tl.load(_weights(B, place.row, s, place, chunk, REVERSE))
        h = tl.exp2(_d(dts[s]) * rates) * h + _d(xs[s]) * _n(Bt)
        around = around + (h,)
    return around


@triton.jit
def _segment(tokens, segment, T: tl.constexpr):
    """Where this program's segment starts and stops, in tokens scanned before."""
    first = tl.program_id(2) * segment
    return first, tl.minimum(first + segment, _steps(tokens, T))


@triton.jit
def _row(i):
    """Index of this batch entry in the i-th item of an array (items, b, ...)."""
    return tl.cast(i, tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def forward(
    u, delta, z, residual, y, A, B, C, skip, bias, order, starts, checkpoints, last,
    channels, states, tokens, blocks, segment,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Outputs y = (residual + sum over n of C * h + D * u) * silu(z), and states on the way.

    Args:
        starts: States before each segment, (segments, b, d, n). Zeros if None.
        checkpoints: Gets the state before each `SPAN` tokens, (spans, b, d, n).
        last: Gets the state after the last segment, (b, d, n).
        blocks: Blocks of channels in a group.
        segment: Tokens in a segment, a multiple of `SPAN`, itself one of T.
    """
    first, stop = _segment(tokens, segment, T)
    place = _place(order, tokens, channels, blocks, NO, NI, D)
    at, inside = _in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    skip, bias = _per_channel(skip, place), _per_channel(bias, place)
    h = tl.zeros([NO, NI, D], tl.float32)
    if starts is not None:
        own = _row(tl.program_id(2)) * channels * states
        h += tl.load(starts + own + at, mask=inside, other=0.0)

    for i in range(first, stop, T):
        if checkpoints is not None and i % SPAN == 0:
            own = _row(i // SPAN) * channels * states
            tl.store(checkpoints + own + at, h, mask=inside)
        chunk = _chunk(i, place, T, REVERSE)
        ut = _load(u, place, chunk)
        dt = _step_size(delta, bias, place, chunk, SOFTPLUS)[1]
        dts, xs, ys = _unstack(dt, REVERSE), _unstack(dt * ut, REVERSE), ()
        for s in tl.static_range(T):
            Bt = tl.load(_weights(B, place.row, s, place, chunk, REVERSE))
            Ct = tl.load(_weights(C, place.row, s, place, chunk, REVERSE))
            h = tl.exp2(_d(dts[s]) * rates) * h + _d(xs[s]) * _n(Bt)
            ys = ys + (_over_states(h * _n(Ct)),)
        out = _stack(ys, REVERSE) + skip * ut
        if residual is not None:
            out += _load(residual, place, chunk)
        if z is not None:
            gate = _load(z, place, chunk)
            out *= gate / (1.0 + tl.exp(-gate))
        _store(y, place, chunk, out)
    if stop == _steps(tokens, T):
        tl.store(last + _row(0) * channels * states + at, h, mask=inside)


@triton.jit
def _ungate(
    around, gy, u, z, residual, gz, gresidual, C, gC, skip, place, chunk, part,
    T: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of what follows the states: stores those of C, z and the residual.

    Returns the gradient of the outputs before the gate, (D, T).
    """
    grad = _load(gy, place, chunk)
    if z is not None:
        gate = _load(z, place, chunk)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        slope = grad * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        grad *= gate * sigmoid
    grads, ys = _unstack(grad, REVERSE), ()
    for s in tl.static_range(T):
        gCt = _over_channels(_d(grads[s]) * around[s + 1])
        tl.store(_weights(gC, part, s, place, chunk, REVERSE), gCt)
        if z is not None:
            Ct = tl.load(_weights(C, place.row, s, place, chunk, REVERSE))
            ys = ys + (_over_states(around[s + 1] * _n(Ct)),)
    if z is not None:
        out = _stack(ys, REVERSE) + skip * _load(u, place, chunk)
        if residual is not None:
            out += _load(residual, place, chunk)
            _store(gresidual, place, chunk, grad)
        _store(gz, place, chunk, out * slope)
    return grad


@triton.jit
def _adjoint(
    arriving, around, grad, gA, u, delta, gu, gdelta, B, C, gB, bias, skip, rates, place, chunk,
    part, T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of the recurrence in a chunk: stores those of u, delta and B.

    Args:
        arriving: Gradient of the state after the chunk.
        around: States around its steps.
        grad: Gradient of the outputs before the gate, (D, T).
        gA: What is known of the gradient of A.

    Returns the gradient of the state before the chunk, `gA` with what the chunk adds, and what
    it adds to the gradients of D and the bias.
    """
    LN2: tl.constexpr = 0.6931471805599453
    ut = _load(u, place, chunk)
    raw, dt = _step_size(delta, bias, place, chunk, SOFTPLUS)
    dts, xs = _unstack(dt, REVERSE), _unstack(dt * ut, REVERSE)
    grads, gxs, gdts = _unstack(grad, REVERSE), (), ()
    for s in tl.static_range(T - 1, -1, -1):
        Bt = _n(tl.load(_weights(B, place.row, s, place, chunk, REVERSE)))
        Ct = _n(tl.load(_weights(C, place.row, s, place, chunk, REVERSE)))
        gh = _d(grads[s]) * Ct + arriving
        gBt = _over_channels(_d(xs[s]) * gh)
        tl.store(_weights(gB, part, s, place, chunk, REVERSE), gBt)
        gxs = (_over_states(gh * Bt),) + gxs
        arriving = tl.exp2(_d(dts[s]) * rates) * gh
        gexponent = arriving * around[s]
        gA += gexponent * _d(dts[s])
        gdts = (_over_states(gexponent * rates),) + gdts
    gx = _stack(gxs, REVERSE)
    gdt = _stack(gdts, REVERSE) * LN2 + gx * ut
    if SOFTPLUS:
        gdt = gdt / (1.0 + tl.exp(-raw))
    _store(gdelta, place, chunk, gdt)
    _store(gu, place, chunk, gx * dt + grad * skip)
    return arriving, gA, tl.sum(grad * ut, 1), tl.sum(tl.where(chunk.here, gdt, 0.0), 1)


@triton.jit
def backward(
    u, delta, z, residual, gy, gu, gdelta, gz, gresidual,
    A, B, C, skip, bias, order, checkpoints, scratch, arriving, gA, gB, gC, gskip, gbias, gstart,
    channels, states, tokens, blocks, segment,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients, span by span against the scan; states are recomputed from those before spans.

    Args:
        checkpoints: States before each `SPAN` tokens, (spans, b, d, n).
        scratch: Room for the states before the chunks of a span, (segments, b, blocks, tiles).
        arriving: Gradients of the state after each segment, (segments, b, d, n). Zeros if None.
        gA: Gets the part of each segment and batch entry, (segments, b, d, n).
        gB: Gets the part of each block of a group, (blocks, packed). `gC` likewise.
        gskip: Gets the part of each segment and batch entry, (segments, b, d). `gbias` likewise.
        gstart: Gets the gradient of the initial state, (b, d, n).

    The others are those of `forward`.
    """
    first, stop = _segment(tokens, segment, T)
    place = _place(order, tokens, channels, blocks, NO, NI, D)
    part = tl.program_id(0) % blocks * tl.num_programs(1) * (tl.num_programs(0) // blocks)
    part += place.row
    at, inside = _in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    skip, bias = _per_channel(skip, place), _per_channel(bias, place)
    row = _row(tl.program_id(2))
    TILE: tl.constexpr = NO * NI * D
    scratch += (row * tl.num_programs(0) + tl.program_id(0)) * (SPAN // T * TILE)
    scratch += _tile(NO, NI, D)
    gh, gA_sum = tl.zeros([NO, NI, D], tl.float32), tl.zeros([NO, NI, D], tl.float32)
    gskip_sum, gbias_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    if arriving is not None:
        gh += tl.load(arriving + row * channels * states + at, mask=inside, other=0.0)

    for span in range(tl.cdiv(stop, SPAN) - 1, first // SPAN - 1, -1):
        start, end = span * SPAN, tl.minimum(span * SPAN + SPAN, stop)
        own = _row(span) * channels * states
        h = tl.load(checkpoints + own + at, mask=inside, other=0.0)
        tl.store(scratch, h)
        for i in range(start, end - T, T):
            h = _advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)[T]
            tl.store(scratch + ((i - start) // T + 1) * TILE, h)
        tl.debug_barrier()  # other threads may read what one has written
        for i in range(end - T, start - T, -T):
            h = tl.load(scratch + (i - start) // T * TILE)
            around = _advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)
            chunk = _chunk(i, place, T, REVERSE)
            grad = _ungate(
                around, gy, u, z, residual, gz, gresidual, C, gC, skip, place, chunk, part,
                T, REVERSE,
            )  # fmt: skip
            gh, gA_sum, more_skip, more_bias = _adjoint(
                gh, around, grad, gA_sum, u, delta, gu, gdelta, B, C, gB, bias, skip, rates,
                place, chunk, part, T, SOFTPLUS, REVERSE,
            )  # fmt: skip
            gskip_sum += more_skip
            gbias_sum += more_bias
        tl.debug_barrier()
    tl.store(gA + row * channels * states + at, gA_sum, mask=inside)
    own = row * channels + place.first + place.d
    tl.store(gskip + own, gskip_sum, mask=place.owned)
    tl.store(gbias + own, gbias_sum, mask=place.owned)
    if first == 0:
        tl.store(gstart + _row(0) * channels * states + at, gh, mask=inside)


@triton.jit
def segment_forward(
    u, delta, A, B, bias, order, ends, elapsed, channels, states, tokens, blocks, segment,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Of each segment, scanned from zeros: its last state, and its sum of step sizes.

    Args:
        ends: Gets the states, (segments, b, d, n).
        elapsed: Gets the sums, (segments, b, d).
    """
    first, stop = _segment(tokens, segment, T)
    place = _place(order, tokens, channels, blocks, NO, NI, D)
    at, inside = _in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    bias = _per_channel(bias, place)
    h, time = tl.zeros([NO, NI, D], tl.float32), tl.zeros([D], tl.float32)
    for i in range(first, stop, T):
        h = _advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)[T]
        chunk = _chunk(i, place, T, REVERSE)
        time += tl.sum(_step_size(delta, bias, place, chunk, SOFTPLUS)[1], 1)
    own = _row(tl.program_id(2)) * channels
    tl.store(ends + own * states + at, h, mask=inside)
    tl.store(elapsed + own + place.first + place.d, time, mask=place.owned)


@triton.jit
def segment_backward(
    gy, z, delta, A, C, bias, order, ends, elapsed, channels, states, tokens, blocks, segment,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Of each segment, with no gradient from those after it: the gradient of the state before it.

    Args:
        ends: Gets the gradients, (segments, b, d, n).
        elapsed: Gets the sum of step sizes, (segments, b, d).
    """
    first, stop = _segment(tokens, segment, T)
    place = _place(order, tokens, channels, blocks, NO, NI, D)
    at, inside = _in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    bias = _per_channel(bias, place)
    g, time = tl.zeros([NO, NI, D], tl.float32), tl.zeros([D], tl.float32)
    for i in range(stop - T, first - T, -T):
        chunk = _chunk(i, place, T, REVERSE)
        dt = _step_size(delta, bias, place, chunk, SOFTPLUS)[1]
        grad = _load(gy, place, chunk)
        if z is not None:
            gate = _load(z, place, chunk)
            grad *= gate / (1.0 + tl.exp(-gate))
        dts, grads = _unstack(dt, REVERSE), _unstack(grad, REVERSE)
        for s in tl.static_range(T - 1, -1, -1):
            Ct = tl.load(_weights(C, place.row, s, place, chunk, REVERSE))
            g = tl.exp2(_d(dts[s]) * rates) * (g + _d(grads[s]) * _n(Ct))
        time += tl.sum(dt, 1)
    own = _row(tl.program_id(2)) * channels
    tl.store(ends + own * states + at, g, mask=inside)
    tl.store(elapsed + own + place.first + place.d, time, mask=place.owned)


@triton.jit
def carry(
    A, ends, elapsed, start, states, size, segments, BLOCK: tl.constexpr, BACKWARD: tl.constexpr
):
    """Turn what segments give from zeros into what arrives at each, in place of `ends`.

    Args:
        ends: (segments, b, d, n) of `segment_forward` or, if `BACKWARD`, `segment_backward`.
        elapsed: Sums of step sizes, (segments, b, d).
        start: What arrives at the first segment (`BACKWARD`: the last), (b, d, n). Zeros if None.
        size: Elements of (d, n). Grids are (blocks of those, b).
    """
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = own < size
    rates = tl.load(A + own, mask=inside, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    if start is not None:
        h += tl.load(start + _row(0) * size + own, mask=inside, other=0.0)
    for i in range(segments):
        row = _row(segments - 1 - i if BACKWARD else i)
        time = tl.load(elapsed + row * (size // states) + own // states, mask=inside, other=0.0)
        end = tl.load(ends + row * size + own, mask=inside, other=0.0)
        tl.store(ends + row * size + own, h, mask=inside)
        h = tl.exp2(time * rates) * h + end
