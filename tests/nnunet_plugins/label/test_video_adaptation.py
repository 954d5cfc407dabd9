"""What a network learns from labelled frames, and what stays as it was."""

from contextlib import contextmanager

import pytest
import torch
from monai.losses import DiceCELoss

from nnunet_plugins.bundle.network import FoldEnsemble
from nnunet_plugins.label.video.adaptation import Adaptation, Example, adapted
from nnunet_plugins.networks import EndoMamba, Vivim

LOSS = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
NETWORKS = {
    "vivim": lambda: Vivim(
        3, 2, features_per_stage=(8, 8, 16, 16), heads=(1, 1, 2, 2), blocks_per_stage=(1, 1, 1, 1),
        mamba_depth=1, decoder_width=8, boundary_layers=1,
    ),
    "endomamba": lambda: EndoMamba(
        3, 2, d_model=16, depth=2, decoder_widths=(8, 8, 8, 8), skips=True, deep_supervision=True
    ),
}  # fmt: skip


@pytest.fixture(params=list(NETWORKS))
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(2, 32, 48)
    labels[:, 8:20, 10:30] = 1
    frames = torch.rand(3, 4, 32, 48, generator=generator) * 0.3
    frames[:, [0, 2]] += labels * 0.7
    return Example(frames, (0, 2), labels)


def logits_of(network, clip):
    with torch.no_grad():
        out = network.eval()(clip.clip[None])
    return out[0] if isinstance(out, list) else out


def test_labelled_frames_are_learned_by_the_decoder_alone(network, clip):
    before = {name: x.clone() for name, x in network.state_dict().items()}
    grads = [p.requires_grad for p in network.parameters()]
    state = torch.get_rng_state()
    own = adapted(network, [clip], LOSS, Adaptation(40, 1e-2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in network.parameters()] == grads
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    changed = {n for n, x in own.state_dict().items() if not torch.equal(x, before[n])}
    assert changed
    assert all(name.startswith("decoder.") and "running" not in name for name in changed)
    labels = clip.labels[None, None]
    losses = [LOSS(logits_of(n, clip)[:, :, [0, 2]], labels) for n in (network, own)]
    assert losses[1] < 0.8 * losses[0]
    assert not any(p.requires_grad for p in own.parameters())


def test_the_same_is_learned_twice_and_another_seed_learns_other(network, clip):
    one, two = (adapted(network, [clip], LOSS, Adaptation(5)) for _ in range(2))
    other = adapted(network, [clip], LOSS, Adaptation(5, seed=1))
    name = "decoder.seg_layers.0.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_unlabelled_frames_teach_nothing(network, clip):
    changed = clip.clip.clone()
    changed[:, 3] = 0.5  # after all labelled frames
    if isinstance(network, Vivim):
        pytest.skip("its answers know all frames of a clip")
    other = Example(changed, clip.places, clip.labels)
    one, two = (adapted(network, [c], LOSS, Adaptation(3)) for c in (clip, other))
    name = "decoder.seg_layers.0.weight"
    torch.testing.assert_close(one.state_dict()[name], two.state_dict()[name])


def test_every_member_of_an_ensemble_learns(clip):
    ensemble = FoldEnsemble([NETWORKS["endomamba"](), NETWORKS["endomamba"]()])
    own = adapted(ensemble, [clip], LOSS, Adaptation(2))
    for before, after in zip(ensemble.members, own.members, strict=True):
        pairs = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_what_nobody_labelled_is_said_as_before(network, clip):
    other = Example(torch.rand(3, 4, 32, 48, generator=torch.Generator().manual_seed(2)), (1, 3))
    before = logits_of(network, other)[:, :, [1, 3]].softmax(1)
    changes = []
    for examples in ([clip], [clip, other]):
        own = adapted(network, examples, LOSS, Adaptation(40, 1e-2))
        changes.append((logits_of(own, other)[:, :, [1, 3]].softmax(1) - before).abs().mean())
    assert changes[1] < 0.7 * changes[0]


@pytest.mark.parametrize("steps", [0, 3])
def test_the_adaptation_ends_with_the_turn_that_is_refused(network, clip, steps):
    """Five turns come before the first step: the copy, and four views of the clip."""
    asked, losses = [], []

    @contextmanager
    def turn():
        asked.append(1)
        if len(asked) > 5 + steps:
            raise InterruptedError
        yield

    def loss(logits, labels):
        losses.append(1)
        return LOSS(logits, labels)

    with pytest.raises(InterruptedError):
        adapted(network, [clip], loss, Adaptation(1000), turn)
    assert len(losses) == steps


def test_networks_without_a_decoder_are_refused(clip):
    with pytest.raises(ValueError, match="no decoder"):
        adapted(torch.nn.Conv3d(3, 2, 1), [clip], LOSS)
