"""A whole block in one call of the compiled library equals the operators that it consists of."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mamba_kernels import (
    BlockWeights,
    DirectionWeights,
    MambaBlock,
    mamba_blocks,
    use_backend,
)
from mamba_kernels.mamba_block import cpu_backend
from mamba_kernels.native import library

HERE = library.missing() is None
INSTRUCTION_SETS = list(library.instruction_sets())
needs_library = pytest.mark.skipif(not HERE, reason=str(library.missing()))
needs_bfloat16 = pytest.mark.skipif(
    not library.multiplies_bfloat16(), reason="this CPU does not multiply bfloat16"
)


def weights(c=32, d=48, n=5, r=3, k=4, count=1, seed=0):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=g)

    directions = [
        DirectionWeights(
            conv=randn(d, k, scale=0.5), conv_bias=randn(d, scale=0.1),
            x_proj=randn(r + 2 * n, d, scale=d**-0.5), dt_proj=randn(d, r, scale=r**-0.5),
            dt_bias=randn(d) - 2, A=-randn(d, n).abs() * 8, D=randn(d),
        )
        for _ in range(count)
    ]  # fmt: skip
    norm, in_proj = 1 + randn(c, scale=0.1), randn(2 * d, c, scale=c**-0.5)
    return BlockWeights(norm, in_proj, directions, randn(c, d, scale=d**-0.5))


def tokens(b, l, c, seed=1):
    return torch.randn(b, l, c, generator=torch.Generator().manual_seed(seed))


def states_of(block, b):
    first, g = block.weights.directions[0], torch.Generator().manual_seed(2)
    d, k = first.conv.shape
    return [
        (torch.randn(b, d, k - 1, generator=g), torch.randn(b, *first.A.shape, generator=g))
        for _ in block.orders
    ]


def permutation(length):
    return torch.randperm(length, generator=torch.Generator().manual_seed(3))


def assert_close(got, want, tolerance):
    assert got.dtype == want.dtype == torch.float32
    assert got.shape == want.shape
    largest = want.abs().max() if want.numel() else 0
    assert ((got - want).abs() <= tolerance * largest).all()


def assert_same_block(block, x, states, tolerance):
    """The library's answer, on the right backend, and that of the definition."""
    assert cpu_backend.refuses([block], x, None, True) is None
    y, after = block(x, states, return_states=True)
    with use_backend("torch"):
        want, wanted = block(x, states, return_states=True)
    assert_close(y, want, tolerance)
    for pair, wanted_pair in zip(after, wanted, strict=True):
        for got, state in zip(pair, wanted_pair, strict=True):
            assert_close(got, state, tolerance)


@needs_library
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("b", "l", "sizes", "orders"),
    [
        (1, 1, {"c": 16, "d": 16, "n": 1, "r": 1, "k": 2}, ["forward"]),
        (2, 37, {"n": 16, "k": 1}, ["reverse"]),
        (1, 197, {"c": 96, "d": 192, "n": 16, "r": 24}, ["forward", "reverse"]),
        (2, 50, {"c": 48, "d": 80, "r": 40, "n": 17}, ["reverse", "order", "forward"]),
        (1, 2100, {"n": 3}, ["forward", "order"]),
    ],
    ids=str,
)
def test_every_instruction_set_matches_the_definition(isa, b, l, sizes, orders):
    orders = [permutation(l) if order == "order" else order for order in orders]
    block = MambaBlock(weights(**sizes, count=len(orders)), orders)
    x = tokens(b, l, sizes.get("c", 32))
    with library.use_instruction_set(isa):
        assert_same_block(block, x, None, 3e-6)
        assert_same_block(block, x, states_of(block, b), 3e-6)


@needs_bfloat16
@pytest.mark.parametrize("orders", [["forward"], ["forward", "reverse"]], ids=str)
def test_factors_of_bfloat16_differ_by_their_rounding(orders):
    sizes = {"c": 96, "d": 192, "n": 16, "r": 12, "count": len(orders)}
    block = MambaBlock(weights(**sizes), orders, dtype=torch.bfloat16)
    x = tokens(2, 75, 96)
    assert_same_block(block, x, states_of(block, 2), 2e-2)
    exact = MambaBlock(weights(**sizes), orders)(x)[0]
    error = (block(x)[0] - exact).norm() / exact.norm()
    assert 1e-5 < error < 1e-2


@pytest.mark.skipif(library.multiplies_bfloat16() != library.TILES, reason="this CPU has no AMX")
@pytest.mark.parametrize("l", [1, 16, 17, 31, 33, 65, 197])
def test_tiles_give_what_pairs_give(monkeypatch, l):
    """To the order of their sums; d and c choose wide, narrow and single columns of tiles."""
    orders = ["forward", "reverse", permutation(l)]
    for c, d in ((64, 96), (32, 80), (48, 64)):
        own, x = weights(c=c, d=d, n=16, r=9, count=3), tokens(2, l, c)
        y = MambaBlock(own, orders, dtype=torch.bfloat16)(x)[0]
        with monkeypatch.context() as patch:
            patch.setattr(cpu_backend, "multiplies_bfloat16", lambda: 1)
            pairs = MambaBlock(own, orders, dtype=torch.bfloat16)(x)[0]
        assert_close(y, pairs, 1e-2)
        assert (y - pairs).norm() < 2e-3 * pairs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_in_turn_give_what_each_gives(count, dtype):
    sizes = [{"d": 48, "n": 5}, {"d": 96, "n": 16, "k": 3, "count": 2}, {"d": 32, "r": 2}]
    orders = [["forward"], ["reverse", permutation(40)], ["forward"]]
    blocks = [
        MambaBlock(weights(**own, seed=i), order, dtype=dtype)
        for i, (own, order) in enumerate(zip(sizes[:count], orders[:count], strict=True))
    ]
    x, states = tokens(2, 40, 32), [states_of(block, 2) for block in blocks]
    for given in (None, states):
        want, wanted = x, []
        for i, block in enumerate(blocks):
            want, after = block(want, given and given[i], return_states=True)
            wanted.append(after)
        y, every = mamba_blocks(blocks, x, given, return_states=True)
        assert torch.equal(y, want)
        assert mamba_blocks(blocks, x, given)[1] == []
        for own, other in zip(every, wanted, strict=True):
            for pair, pair_wanted in zip(own, other, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(pair, pair_wanted, strict=True))


@needs_bfloat16
@pytest.mark.parametrize("silent", [0, 1], ids=["even", "odd"])
def test_a_factor_beside_a_zero_counts(silent):
    block = MambaBlock(weights(c=32, d=32), ["forward"], dtype=torch.bfloat16)
    x = tokens(1, 30, 32)
    x[..., silent::2] = 0
    assert_same_block(block, x, None, 2e-2)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cut", [1, 3, 16, 40])
def test_a_sequence_in_parts_has_the_bits_of_the_whole(dtype, cut):
    if dtype == torch.bfloat16 and not library.multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16")
    block, x = MambaBlock(weights(n=16), ["forward"], dtype=dtype), tokens(2, 83, 32)
    whole, (wanted,) = block(x, return_states=True)
    parts, states = [], None
    for part in x.split(cut, dim=1):
        y, states = block(part, states, return_states=True)
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert all(torch.equal(a, b) for a, b in zip(states[0], wanted, strict=True))


@needs_library
def test_neither_threads_nor_others_of_a_batch_change_a_bit():
    orders = ["forward", "reverse", permutation(150)]
    block = MambaBlock(weights(c=96, d=192, count=3), orders)
    x, before, every = tokens(3, 150, 96), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            every.append(block(x)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(every[0], every[1])
    assert torch.equal(every[0], every[2])
    assert torch.equal(block(x[1:2])[0], every[0][1:2])


def test_inputs_stay_as_they_are_and_nothing_is_recorded():
    block, x = MambaBlock(weights(), ["forward"]), tokens(2, 20, 32).requires_grad_()
    states = states_of(block, 2)
    copies = [x.detach().clone(), *(state.clone() for state in states[0])]
    y, after = block(x, states, return_states=True)
    assert not y.requires_grad
    assert not any(state.requires_grad for state in after[0])
    assert all(torch.equal(a, b) for a, b in zip((x, *states[0]), copies, strict=True))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_outlives_what_it_was_copied_from(again):
    block, x = MambaBlock(weights(count=2), ["forward", permutation(20)]), tokens(1, 20, 32)
    want = block(x)[0]
    other = again(block)
    if block.packed:
        for kept in block.packed.kept:
            kept.zero_()
    assert torch.equal(other(x)[0], want)


@needs_library
def test_weights_changed_later_are_not_seen():
    own, x = weights(), tokens(1, 20, 32)
    block = MambaBlock(own, ["forward"])
    want = block(x)[0]
    for weight in (own.norm, own.in_proj, own.out_proj, *vars(own.directions[0]).values()):
        weight.zero_()
    assert torch.equal(block(x)[0], want)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_default_dtype_of_tensors_does_not_matter(dtype):
    x, before = tokens(1, 40, 32), torch.get_default_dtype()
    own = weights()
    block = MambaBlock(own, ["forward"])
    y, (states,) = block(x, return_states=True)
    torch.set_default_dtype(dtype)
    try:
        for other in (block, MambaBlock(own, ["forward"])):
            got, (after,) = other(x, return_states=True)
            assert all(torch.equal(a, b) for a, b in zip((got, *after), (y, *states), strict=True))
    finally:
        torch.set_default_dtype(before)


@needs_library
def test_the_default_device_of_tensors_does_not_matter():
    x, own = tokens(1, 40, 32), weights()
    want = MambaBlock(own, ["forward"])(x)[0]
    with torch.device("meta"):
        block = MambaBlock(own, ["forward"])
        assert block.packed is not None
        got = block(x)[0]
    assert torch.equal(got, want)


def test_what_is_no_number_stays_with_its_sequence_and_the_tokens_after_it():
    block, x = MambaBlock(weights(), ["forward"]), tokens(3, 30, 32)
    clean = block(x)[0]
    x[1, 10, 4] = torch.nan
    y = block(x)[0]
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :10], clean[1, :10])
    assert y[1, 10].isnan().all()


@needs_library
def test_several_threads_may_ask_one_block():
    block = MambaBlock(weights(n=16, count=2), ["forward", "reverse"])
    inputs = [tokens(1, 60, 32, seed=i) for i in range(16)]
    want = [block(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: block(x)[0], inputs * 4))
    assert all(torch.equal(a, b) for a, b in zip(got, want * 4, strict=True))


def test_recorded_operators_are_those_of_torch():
    block, x = MambaBlock(weights(), ["forward"]), tokens(1, 12, 32)
    with FlopCounterMode(display=False) as counter:
        y = block(x)[0]
    assert counter.get_total_flops() > 0
    torch.testing.assert_close(y, block(x)[0], rtol=1e-4, atol=1e-5)


def test_tokens_and_states_may_lie_anywhere():
    block, x = (
        MambaBlock(
            weights(),
            [
                "forward",
            ],
        ),
        tokens(2, 20, 32),
    )
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    states = states_of(block, 2)
    apart = [tuple(s.transpose(0, 2).contiguous().transpose(0, 2) for s in states[0])]
    assert torch.equal(block(strided, apart)[0], block(x, states)[0])


def test_sizes_that_the_library_does_not_take_are_computed_by_torch():
    block, x = MambaBlock(weights(c=20, d=30), ["forward"]), tokens(1, 9, 20)
    assert "multiples of 16" in cpu_backend.refuses([block], x, None, False)
    assert block(x)[0].isfinite().all()


def test_bad_input_is_refused_in_one_sentence():
    block = MambaBlock(weights(), ["forward"])
    x, (state,) = tokens(2, 9, 32), states_of(block, 2)
    with pytest.raises(ValueError, match=r"expected torch.float32 of \(b, l, 32\)"):
        block(x[..., :16])
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        block(x.double())
    with pytest.raises(ValueError, match="2 states came for 1 directions"):
        block(x, [state, state])
    with pytest.raises(ValueError, match="scan state has shape"):
        block(x, [(state[0], state[1][:1])])
    with pytest.raises(TypeError, match="rounded states drift"):
        block(x, [(state[0], state[1].double())])
    with pytest.raises(ValueError, match="an order has shape"):
        MambaBlock(weights(), [permutation(8)])(x)
    with pytest.raises(ValueError, match="no permutation"):
        MambaBlock(weights(), [torch.zeros(9, dtype=torch.int64)])(x)
    for order in ("backward", "interleaved", None, [1, 0]):
        with pytest.raises(ValueError, match="expected 'forward', 'reverse' or a tensor"):
            MambaBlock(weights(), [order])
    with pytest.raises(ValueError, match="1 directions came with 2 orders"):
        MambaBlock(weights(), ["forward", "reverse"])
    with pytest.raises(TypeError, match=r"factors of torch\.float16"):
        MambaBlock(weights(), ["forward"], dtype=torch.float16)
    for blocks, states in (([], None), ([block], []), ([block, block], [[state]])):
        with pytest.raises(ValueError, match=f"{len(blocks)} blocks came"):
            mamba_blocks(blocks, x, states)
    with pytest.raises(ValueError, match=r"expected torch.float32 of \(b, l, 48\)"):
        mamba_blocks([block, MambaBlock(weights(c=48), ["forward"])], x)
    own = weights()
    with pytest.raises(ValueError, match="out_proj has shape"):
        MambaBlock(BlockWeights(own.norm, own.in_proj, own.directions, own.in_proj), ["forward"])


def test_pending_negations_are_carried_out():
    block, x = MambaBlock(weights(), ["forward"]), tokens(1, 9, 32)
    assert_close(block(torch._neg_view(x))[0], block(-x)[0], 1e-5)
