"""Masks of a piece of a video by a served bundle, with or without frames that a person labelled."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.bundle.frames import FramePlan
from nnunet_plugins.bundle.stream_inferer import StreamInferer
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.label.opened import stamp
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.served import ServedBundle, made
from nnunet_plugins.label.shelf import digest
from nnunet_plugins.label.turns import TooMany, Turns
from nnunet_plugins.label.uncertainty import Uncertainty
from nnunet_plugins.label.video.adaptation import Adaptation, Example, Loss, Turn, adapted
from nnunet_plugins.label.video.drafts import Draft, ranges
from nnunet_plugins.label.video.pieces import Piece, continue_at, remembering, windowed
from nnunet_plugins.label.video.prompts import Prompt

LEARNED = 16
"""Labelled frames that a network is adapted to, at most; of more, those at equal distances."""
KEPT = 12
"""Frames of the video beside these, of which it is to say what it said before."""
SAVE_EVERY = 64
"""Frames after which a memory is kept, beside that at the end of a piece."""
PATIENCE = 0.5
"""Seconds before a job asks again for its turn where too many wait."""


@dataclass(frozen=True)
class Annotation:
    """What is asked for: a piece of a video by the weights of a bundle."""

    bundle: ServedBundle
    weights: Path
    video: SeekableVideo
    piece: Piece
    prompt: Prompt = field(default_factory=dict)
    how: Adaptation = field(default_factory=Adaptation)

    @property
    def key(self) -> str:
        """Of the weights and the video's file: where it differs, nothing is continued."""
        return f"{digest(self.weights)}-{stamp(self.video.path)}"


def annotate(
    wanted: Annotation,
    draft: Draft,
    turns: Turns,
    advance: Callable[[int], None] = lambda frames: None,
) -> float:
    """Masks of the piece into a draft, which holds each as soon as it is known.

    A network that remembers goes on from where an earlier piece ended. A labelled frame of the
    piece keeps the mask that was drawn. The server's queue is asked for a turn every few frames,
    and for every step of adaptation.

    Args:
        wanted: See `Annotation`.
        draft: Of the same model and video.
        turns: The queue of the server.
        advance: Told how many frames were added; what it raises ends the work between two frames or
            steps of adaptation.

    Returns:
        How uncertain the network was, as `Uncertainty`.

    Raises:
        ValueError: If the video, the weights or the prompt cannot be used.
    """
    unsure = Uncertainty(wanted.bundle.plan.labels.has_regions)
    frames = FramePlan(wanted.bundle.plan)
    with _turn(turns, advance):
        served = wanted.bundle.network(wanted.weights)
        if wanted.key != draft.key:
            raise ValueError("by now other weights are served, or the video has changed; ask again")
        draft.begin()
    network = _network(wanted, served, frames, partial(_turn, turns, advance))
    index, size = wanted.piece.start, (wanted.video.height, wanted.video.width)
    with contextlib.closing(_batches(wanted, network, served, frames, draft)) as batches:
        while index < wanted.piece.end:
            with _turn(turns, advance):
                batch = next(batches)
                for logits in batch:
                    unsure.add(logits)
                    labels = wanted.prompt.get(index)
                    draft.put(index, frames.labels(logits, size) if labels is None else labels)
                    index += 1
            advance(len(batch))
    return unsure.mean


def scheme_of(bundle: ServedBundle) -> LabelScheme:
    """Classes that a bundle knows."""
    return LabelScheme(tuple(bundle.plan.foreground))


def _network(wanted: Annotation, served: nn.Module, frames: FramePlan, turn: Turn) -> nn.Module:
    """The served network, or a copy that has learned from the prompt."""
    if not wanted.prompt or not wanted.how.steps:
        return served
    if wanted.bundle.plan.labels.has_regions:
        raise ValueError(
            f"{wanted.bundle.name} segments overlapping regions, which a mask of classes cannot "
            "prompt; ask without a prompt"
        )
    labelled = spread(sorted(wanted.prompt), LEARNED)
    others = spread(sorted(set(range(wanted.piece.total)) - set(wanted.prompt)), KEPT)
    examples = []
    for index in (*labelled, *others):
        with turn():
            examples.append(_example(wanted, frames, index))
    return adapted(served, examples, loss_of(wanted.bundle), wanted.how, turn)


def spread(indices: list[int], most: int) -> list[int]:
    """Numbers, or so many of them at equal distances."""
    if len(indices) <= most:
        return indices
    return [indices[i] for i in np.linspace(0, len(indices) - 1, most).round().astype(int)]


def _example(wanted: Annotation, frames: FramePlan, index: int) -> Example:
    """A frame among those that the network sees with it, and its labels if it has any."""
    length, total = min(wanted.bundle.plan.patch_size[0], wanted.piece.total), wanted.piece.total
    if _remembers(wanted.bundle):
        first, last = max(0, index + 1 - length), index + 1
    else:
        first = min(max(0, index - length // 2), total - length)
        last = first + length
    clip = torch.stack([_prepared(wanted, frames, i) for i in range(first, last)], dim=1)
    if index not in wanted.prompt:
        return Example(clip, (index - first,))
    labels = torch.from_numpy(wanted.prompt[index].astype(np.float32))[None, None]
    labels = F.interpolate(labels, clip.shape[2:], mode="nearest-exact")[0]
    return Example(clip, (index - first,), labels)


def loss_of(bundle: ServedBundle) -> Loss:
    """The loss that a bundle is trained with.

    Raises:
        ValueError: If it cannot be trained.
    """
    return _part(bundle, "train.json", "loss").to(bundle.device)


def _part(bundle: ServedBundle, name: str, key: str) -> Any:
    """What one of a bundle's configurations makes."""
    file = bundle.folder / "configs" / name
    if not file.is_file():
        raise ValueError(f"{bundle.name} has no configs/{name}, whose {key} is needed for this")
    parser = ConfigParser()
    parser.read_config(file)
    parser.update({"bundle_root": str(bundle.folder)})
    return made(parser, key)


def goes_on_at(bundle: ServedBundle, draft: Draft) -> int:
    """Where a video that was segmented from its first frame on goes on without forgetting."""
    done = draft.done()
    first = ranges(done)[0][1] if done and done[0] == 0 else 0
    inferer = _part(bundle, "inference.json", "inferer")
    if not isinstance(inferer, StreamInferer):
        return first
    return continue_at(draft.memories, first, inferer.chunk)


def _remembers(bundle: ServedBundle) -> bool:
    return isinstance(_part(bundle, "inference.json", "inferer"), StreamInferer)


def _prepared(wanted: Annotation, frames: FramePlan, index: int) -> Tensor:
    return frames.prepare(wanted.video.frame(index))


def _batches(
    wanted: Annotation, network: nn.Module, served: nn.Module, frames: FramePlan, draft: Draft
) -> Iterator[list[Tensor]]:
    """Logits of the piece's frames; memories are kept on the way."""
    inferer = _part(wanted.bundle, "inference.json", "inferer")

    def read(index: int) -> Tensor:
        return _prepared(wanted, frames, index)

    if not isinstance(inferer, StreamInferer):
        yield from windowed(inferer, network, read, wanted.piece)
        return
    stream = remembering(inferer, network, served, wanted.piece.start, draft.memories)
    saved = stream.next
    try:
        while stream.next < wanted.piece.end:
            ends_within = stream.next + inferer.chunk > wanted.piece.end
            if stream.next > saved and (ends_within or stream.next - saved >= SAVE_EVERY):
                stream.save(draft.memories)
                saved = stream.next
            yield stream.step(read, wanted.piece)
    finally:  # the piece has ended, or the work was cancelled
        if saved < stream.next <= wanted.piece.end:
            stream.save(draft.memories)


@contextlib.contextmanager
def _turn(turns: Turns, advance: Callable[[int], None]) -> Iterator[None]:
    """A turn of the server's queue, however long it takes; a cancelled job gives it back unused."""
    with contextlib.ExitStack() as stack:
        while True:
            advance(0)
            try:
                stack.enter_context(turns.turn())
                break
            except TooMany:
                time.sleep(PATIENCE)
        advance(0)
        yield
