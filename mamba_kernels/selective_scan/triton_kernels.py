"""The selective scan as Triton kernels: sequential in time, with the state in registers.

A program scans one block of D channels of one batch entry, or one segment of time of it. Its state
is a tile (NO, NI, D) of n outer times n inner states; a token has a (NO, NI) matrix of weights. Cut
this way, the compiler reads weights 16 bytes at a time and sums inside threads before across.

Time runs in chunks of T = 4 tokens, counted in the order of the scan, with their steps unrolled.
Tokens beyond the end have step size 0, which leaves the state as it is.

Grids are (blocks of channels, b, segments times K directions). What differs between directions
comes as a tuple of a tuple for each; they are scanned side by side and have no outputs in common.
A sequence (b, d, l) is the tuple of its tensor and strides; what may be absent is then None. A is
(d, n), times log2(e) for `exp2`. B, C and their gradients are packed to (b, g, l or up to T - 1
more, NO * NI) float32.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (the language of Triton has no types, and joins tuples by + alone)
from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.selective_scan import triton_tiles as tiles


@triton.jit
def forward(
    directions, channels, states, tokens, blocks, segment,
    K: tl.constexpr, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSES: tl.constexpr,
):  # fmt: skip
    """`_forward` of each direction.

    Args:
        directions: The first arguments of that.
        blocks: Blocks of channels in a group.
        segment: Tokens in a segment, a multiple of `SPAN`, itself one of T.
    """
    for k in tl.static_range(K):
        if tl.program_id(2) % K == k:
            _forward(
                directions[k], channels, states, tokens, blocks, segment, tl.program_id(2) // K,
                NO, NI, D, T, SPAN, SOFTPLUS, REVERSES[k],
            )  # fmt: skip


@triton.jit
def _forward(
    direction, channels, states, tokens, blocks, segment, index,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Outputs y = (sum over n of C * h + D * u) * silu(z), and states on the way.

    Args:
        starts: States before each segment, (segments, b, d, n). Zeros if None.
        checkpoints: Gets the state before each `SPAN` tokens, (spans, b, d, n).
        last: Gets the state after the last segment, (b, d, n).
        index: Of this program's segment.

    The others are those of `forward`.
    """
    u, delta, z, y, A, B, C, skip, bias, order, starts, checkpoints, last = direction
    first, stop = tiles.segment_of(index, tokens, segment, T)
    place = tiles.place_of(order, tokens, channels, blocks, NO, NI, D)
    at, inside = tiles.in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    skip, bias = tiles.per_channel(skip, place), tiles.per_channel(bias, place)
    h = tl.zeros([NO, NI, D], tl.float32)
    if starts is not None:
        own = tiles.row_of(index) * channels * states
        h += tl.load(starts + own + at, mask=inside, other=0.0)

    for i in range(first, stop, T):
        if checkpoints is not None and i % SPAN == 0:
            own = tiles.row_of(i // SPAN) * channels * states
            tl.store(checkpoints + own + at, h, mask=inside)
        chunk = tiles.chunk_of(i, place, T, REVERSE)
        ut = tiles.load(u, place, chunk)
        dt = tiles.step_size(delta, bias, place, chunk, SOFTPLUS)[1]
        dts, xs, ys = tiles.unstack(dt, REVERSE), tiles.unstack(dt * ut, REVERSE), ()
        for s in tl.static_range(T):
            Bt = tl.load(tiles.weights_at(B, place.row, s, place, chunk, REVERSE))
            Ct = tl.load(tiles.weights_at(C, place.row, s, place, chunk, REVERSE))
            h = tl.exp2(tiles.as_d(dts[s]) * rates) * h + tiles.as_d(xs[s]) * tiles.as_n(Bt)
            ys = ys + (tiles.over_states(h * tiles.as_n(Ct)),)
        out = tiles.stack(ys, REVERSE) + skip * ut
        if z is not None:
            gate = tiles.load(z, place, chunk)
            out *= gate / (1.0 + tl.exp(-gate))
        tiles.store(y, place, chunk, out)
    if stop == tiles.steps_of(tokens, T):
        tl.store(last + tiles.row_of(0) * channels * states + at, h, mask=inside)


@triton.jit
def _ungate(
    around, gy, u, z, gz, C, gC, skip, place, chunk, part,
    T: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of what follows the states: stores those of C and z.

    Returns the gradient of the outputs before the gate, (D, T).
    """
    grad = tiles.load(gy, place, chunk)
    if z is not None:
        gate = tiles.load(z, place, chunk)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        slope = grad * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        grad *= gate * sigmoid
    grads, ys = tiles.unstack(grad, REVERSE), ()
    for s in tl.static_range(T):
        gCt = tiles.over_channels(tiles.as_d(grads[s]) * around[s + 1])
        tl.store(tiles.weights_at(gC, part, s, place, chunk, REVERSE), gCt)
        if z is not None:
            Ct = tl.load(tiles.weights_at(C, place.row, s, place, chunk, REVERSE))
            ys = ys + (tiles.over_states(around[s + 1] * tiles.as_n(Ct)),)
    if z is not None:
        out = tiles.stack(ys, REVERSE) + skip * tiles.load(u, place, chunk)
        tiles.store(gz, place, chunk, out * slope)
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
    ut = tiles.load(u, place, chunk)
    raw, dt = tiles.step_size(delta, bias, place, chunk, SOFTPLUS)
    dts, xs = tiles.unstack(dt, REVERSE), tiles.unstack(dt * ut, REVERSE)
    grads, gxs, gdts = tiles.unstack(grad, REVERSE), (), ()
    for s in tl.static_range(T - 1, -1, -1):
        Bt = tiles.as_n(tl.load(tiles.weights_at(B, place.row, s, place, chunk, REVERSE)))
        Ct = tiles.as_n(tl.load(tiles.weights_at(C, place.row, s, place, chunk, REVERSE)))
        gh = tiles.as_d(grads[s]) * Ct + arriving
        gBt = tiles.over_channels(tiles.as_d(xs[s]) * gh)
        tl.store(tiles.weights_at(gB, part, s, place, chunk, REVERSE), gBt)
        gxs = (tiles.over_states(gh * Bt),) + gxs
        arriving = tl.exp2(tiles.as_d(dts[s]) * rates) * gh
        gexponent = arriving * around[s]
        gA += gexponent * tiles.as_d(dts[s])
        gdts = (tiles.over_states(gexponent * rates),) + gdts
    gx = tiles.stack(gxs, REVERSE)
    gdt = tiles.stack(gdts, REVERSE) * LN2 + gx * ut
    if SOFTPLUS:
        gdt = gdt / (1.0 + tl.exp(-raw))
    tiles.store(gdelta, place, chunk, gdt)
    tiles.store(gu, place, chunk, gx * dt + grad * skip)
    return arriving, gA, tl.sum(grad * ut, 1), tl.sum(tl.where(chunk.here, gdt, 0.0), 1)


@triton.jit
def backward(
    directions, channels, states, tokens, blocks, segment,
    K: tl.constexpr, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSES: tl.constexpr,
):  # fmt: skip
    """`_backward` of each direction; arguments are as those of `forward`."""
    for k in tl.static_range(K):
        if tl.program_id(2) % K == k:
            _backward(
                directions[k], channels, states, tokens, blocks, segment, tl.program_id(2) // K,
                NO, NI, D, T, SPAN, SOFTPLUS, REVERSES[k],
            )  # fmt: skip


@triton.jit
def _backward(
    direction, channels, states, tokens, blocks, segment, index,
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
    u, delta, z, gy, gu, gdelta, gz, A, B, C, skip, bias, order = direction[0]
    checkpoints, scratch, arriving, gA, gB, gC, gskip, gbias, gstart = direction[1]
    first, stop = tiles.segment_of(index, tokens, segment, T)
    place = tiles.place_of(order, tokens, channels, blocks, NO, NI, D)
    part = tl.program_id(0) % blocks * tl.num_programs(1) * (tl.num_programs(0) // blocks)
    part += place.row
    at, inside = tiles.in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    skip, bias = tiles.per_channel(skip, place), tiles.per_channel(bias, place)
    row = tiles.row_of(index)
    TILE: tl.constexpr = NO * NI * D
    scratch += (row * tl.num_programs(0) + tl.program_id(0)) * (SPAN // T * TILE)
    scratch += tiles.tile_of(NO, NI, D)
    gh, gA_sum = tl.zeros([NO, NI, D], tl.float32), tl.zeros([NO, NI, D], tl.float32)
    gskip_sum, gbias_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    if arriving is not None:
        gh += tl.load(arriving + row * channels * states + at, mask=inside, other=0.0)

    for span in range(tl.cdiv(stop, SPAN) - 1, first // SPAN - 1, -1):
        start, end = span * SPAN, tl.minimum(span * SPAN + SPAN, stop)
        own = tiles.row_of(span) * channels * states
        h = tl.load(checkpoints + own + at, mask=inside, other=0.0)
        tl.store(scratch, h)
        for i in range(start, end - T, T):
            h = tiles.advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)[T]
            tl.store(scratch + ((i - start) // T + 1) * TILE, h)
        tl.debug_barrier()  # other threads may read what one has written
        for i in range(end - T, start - T, -T):
            h = tl.load(scratch + (i - start) // T * TILE)
            around = tiles.advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)
            chunk = tiles.chunk_of(i, place, T, REVERSE)
            grad = _ungate(
                around, gy, u, z, gz, C, gC, skip, place, chunk, part, T, REVERSE,
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
        tl.store(gstart + tiles.row_of(0) * channels * states + at, gh, mask=inside)


@triton.jit
def segment_forward(
    directions, channels, states, tokens, blocks, segment,
    K: tl.constexpr, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSES: tl.constexpr,
):  # fmt: skip
    """`_segment_forward` of each direction; arguments are as those of `forward`."""
    for k in tl.static_range(K):
        if tl.program_id(2) % K == k:
            _segment_forward(
                directions[k], channels, states, tokens, blocks, segment, tl.program_id(2) // K,
                NO, NI, D, T, SOFTPLUS, REVERSES[k],
            )  # fmt: skip


@triton.jit
def _segment_forward(
    direction, channels, states, tokens, blocks, segment, index,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Of each segment, scanned from zeros: its last state, and its sum of step sizes.

    Args:
        ends: Gets the states, (segments, b, d, n).
        elapsed: Gets the sums, (segments, b, d).
    """
    u, delta, A, B, bias, order, ends, elapsed = direction
    first, stop = tiles.segment_of(index, tokens, segment, T)
    place = tiles.place_of(order, tokens, channels, blocks, NO, NI, D)
    at, inside = tiles.in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    bias = tiles.per_channel(bias, place)
    h, time = tl.zeros([NO, NI, D], tl.float32), tl.zeros([D], tl.float32)
    for i in range(first, stop, T):
        h = tiles.advance(h, i, u, delta, bias, rates, B, place, T, SOFTPLUS, REVERSE)[T]
        chunk = tiles.chunk_of(i, place, T, REVERSE)
        time += tl.sum(tiles.step_size(delta, bias, place, chunk, SOFTPLUS)[1], 1)
    own = tiles.row_of(index) * channels
    tl.store(ends + own * states + at, h, mask=inside)
    tl.store(elapsed + own + place.first + place.d, time, mask=place.owned)


@triton.jit
def segment_backward(
    directions, channels, states, tokens, blocks, segment,
    K: tl.constexpr, NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSES: tl.constexpr,
):  # fmt: skip
    """`_segment_backward` of each direction; arguments are as those of `forward`."""
    for k in tl.static_range(K):
        if tl.program_id(2) % K == k:
            _segment_backward(
                directions[k], channels, states, tokens, blocks, segment, tl.program_id(2) // K,
                NO, NI, D, T, SOFTPLUS, REVERSES[k],
            )  # fmt: skip


@triton.jit
def _segment_backward(
    direction, channels, states, tokens, blocks, segment, index,
    NO: tl.constexpr, NI: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Of each segment, with no gradient from those after it: the gradient of the state before it.

    Args:
        ends: Gets the gradients, (segments, b, d, n).
        elapsed: Gets the sum of step sizes, (segments, b, d).
    """
    gy, z, delta, A, C, bias, order, ends, elapsed = direction
    first, stop = tiles.segment_of(index, tokens, segment, T)
    place = tiles.place_of(order, tokens, channels, blocks, NO, NI, D)
    at, inside = tiles.in_state(place, channels, states)
    rates = tl.load(A + at, mask=inside, other=0.0)
    bias = tiles.per_channel(bias, place)
    g, time = tl.zeros([NO, NI, D], tl.float32), tl.zeros([D], tl.float32)
    for i in range(stop - T, first - T, -T):
        chunk = tiles.chunk_of(i, place, T, REVERSE)
        dt = tiles.step_size(delta, bias, place, chunk, SOFTPLUS)[1]
        grad = tiles.load(gy, place, chunk)
        if z is not None:
            gate = tiles.load(z, place, chunk)
            grad *= gate / (1.0 + tl.exp(-gate))
        dts, grads = tiles.unstack(dt, REVERSE), tiles.unstack(grad, REVERSE)
        for s in tl.static_range(T - 1, -1, -1):
            Ct = tl.load(tiles.weights_at(C, place.row, s, place, chunk, REVERSE))
            g = tl.exp2(tiles.as_d(dts[s]) * rates) * (g + tiles.as_d(grads[s]) * tiles.as_n(Ct))
        time += tl.sum(dt, 1)
    own = tiles.row_of(index) * channels
    tl.store(ends + own * states + at, g, mask=inside)
    tl.store(elapsed + own + place.first + place.d, time, mask=place.owned)


@triton.jit
def carry(
    directions, states, size, segments,
    K: tl.constexpr, BLOCK: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """`_carry` of each direction, (A, ends, elapsed, start).

    Args:
        size: Elements of (d, n). Grids are (blocks of those, b, K).
    """
    for k in tl.static_range(K):
        if tl.program_id(2) == k:
            A, ends, elapsed, start = directions[k]
            _carry(A, ends, elapsed, start, states, size, segments, BLOCK, BACKWARD)


@triton.jit
def _carry(
    A, ends, elapsed, start, states, size, segments, BLOCK: tl.constexpr, BACKWARD: tl.constexpr
):
    """Turn what segments give from zeros into what arrives at each, in place of `ends`.

    Args:
        ends: (segments, b, d, n) of `segment_forward` or, if `BACKWARD`, `segment_backward`.
        elapsed: Sums of step sizes, (segments, b, d).
        start: What arrives at the first segment (`BACKWARD`: the last), (b, d, n). Zeros if None.
    """
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = own < size
    rates = tl.load(A + own, mask=inside, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    if start is not None:
        h += tl.load(start + tiles.row_of(0) * size + own, mask=inside, other=0.0)
    for i in range(segments):
        row = tiles.row_of(segments - 1 - i if BACKWARD else i)
        time = tl.load(elapsed + row * (size // states) + own // states, mask=inside, other=0.0)
        end = tl.load(ends + row * size + own, mask=inside, other=0.0)
        tl.store(ends + row * size + own, h, mask=inside)
        h = tl.exp2(time * rates) * h + end
