"""A network adapted to one video by frames of it that a person has labelled.

Source: Caelles et al., "One-Shot Video Object Segmentation", CVPR 2017, section 3.2: a trained
network is trained on for a few steps on the first frame of the video that it will segment. Here
the decoder alone learns, so that what the encoder keeps of the frames so far stays valid, and what
it says about them is computed once.

Shapes: k classes, t h w clip, n chosen frames of it.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.bundle.inferer import members_of

Loss = Callable[[Tensor, Tensor], Tensor]
Turn = Callable[[], AbstractContextManager[None]]
"""What each step is done within; what it raises as it is entered ends the adaptation."""
VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes of (..., h, w) along which each labelled clip is mirrored to learn from."""


@dataclass(frozen=True)
class Example:
    """Frames of a clip that a network is adapted by, with the frames that it sees with them."""

    clip: Tensor
    """As the network takes it, (c, t, h, w)."""
    places: tuple[int, ...]
    """Of these frames in the clip, n of them."""
    labels: Tensor | None = None
    """Their classes, (n, h, w). None: nobody has labelled them, and what is said of them stays."""


@dataclass(frozen=True)
class Adaptation:
    """How long and how fast a network is adapted.

    Args:
        steps: Of the optimiser, one labelled view each; 0 for none.
        learning_rate: Of AdamW.
        seed: Of the order of the views.
    """

    steps: int = 40
    learning_rate: float = 1e-3
    seed: int = 0


def adapted(
    network: nn.Module,
    examples: Sequence[Example],
    loss: Loss,
    how: Adaptation | None = None,
    turn: Turn = nullcontext,
) -> nn.Module:
    """A copy of a network whose decoder has learned from labelled frames.

    With every step it also learns to say of an unlabelled frame what it said before, so that it
    does not forget what the one labelled frame does not show (Li & Hoiem, "Learning without
    Forgetting", ECCV 2016).

    The network itself is not changed, nor are encoder, statistics of norms, or the random numbers
    of the process. The same arguments give the same network.

    Args:
        network: With a part `decoder` in it, or an ensemble of such.
        examples: At least one that is labelled.
        loss: Of logits (1, k, n, h, w) and labels (1, 1, n, h, w).
        how: See `Adaptation`.
        turn: See `Turn`; also what each view is looked at within.

    Raises:
        ValueError: If the network has no decoder.
    """
    with turn():
        own = copy.deepcopy(network).eval().requires_grad_(False)
    for member in members_of(own):
        if not hasattr(member, "decoder"):
            raise ValueError(
                f"a {type(member).__name__} has no decoder to adapt; segment without a prompt"
            )
        _adapt(member, examples, loss, how or Adaptation(), turn)
    return own


def _adapt(
    member: nn.Module, examples: Sequence[Example], loss: Loss, how: Adaptation, turn: Turn
) -> None:
    decoder: nn.Module = member.decoder

    def seen(example: Example, axes: tuple[int, ...] = ()) -> tuple[Any, Tensor]:
        with turn(), torch.no_grad():
            return _seen(member, example, axes)

    labelled = [seen(e, axes) for e in examples if e.labels is not None for axes in VIEWS]
    others = [seen(e) for e in examples if e.labels is None]
    parameters = [p for p in decoder.parameters() if p.is_floating_point()]
    optimizer = torch.optim.AdamW(parameters, how.learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(how.seed)
    decoder.requires_grad_(True)
    for step in range(how.steps):
        if step % len(labelled) == 0:
            views = torch.randperm(len(labelled), generator=order).tolist()
        with turn(), torch.enable_grad():
            given, labels = labelled[views[step % len(labelled)]]
            optimizer.zero_grad()
            wrong = loss(_logits(decoder, given), labels)
            if others:
                given, said = others[int(torch.randint(len(others), (), generator=order))]
                wrong = wrong + F.cross_entropy(_logits(decoder, given), said)
            wrong.backward()
            optimizer.step()
    decoder.requires_grad_(False)


def _seen(member: nn.Module, example: Example, axes: tuple[int, ...] = ()) -> tuple[Any, Tensor]:
    """What the decoder is given of an example's frames, and what it is to say.

    That is their labels (1, 1, n, h, w), or, without labels, what it says, as probabilities
    (1, k, n, h, w).
    """
    device = next(member.parameters()).device
    inputs: list[Any] = []
    hook = member.decoder.register_forward_pre_hook(lambda _, given: inputs.extend(given))
    try:
        member(example.clip.flip(axes)[None].to(device))
    finally:
        hook.remove()
    given = [_chosen(x, list(example.places)) for x in inputs]
    if example.labels is None:
        return given, _logits(member.decoder, given).softmax(1)
    return given, example.labels.flip(axes)[None, None].to(device)


def _logits(decoder: nn.Module, given: Sequence[Any]) -> Tensor:
    """Logits of the finest grid, (1, k, n, h, w)."""
    logits = decoder(*given)
    return logits[0] if isinstance(logits, list | tuple) else logits


def _chosen(value: Any, frames: list[int]) -> Any:
    """The same with some of the frames alone: (1, c, t, h, w) -> (1, c, n, h, w)."""
    if isinstance(value, Tensor):
        return value[:, :, frames] if value.ndim == 5 else value
    if isinstance(value, list | tuple) and any(isinstance(x, Tensor) for x in value):
        return [_chosen(x, frames) for x in value]
    return value
