"""A video network that is asked frame by frame, for as long as the video lasts.

Shapes: b streams, c channels, t frames, h w frame.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "mambamed.stream.1"
"""Key of our plain JSON in the header of a saved state."""

Output = Any
"""What the network's head gives: a tensor, or a list or tuple of them, with a time axis each."""


class Recurrent(Protocol):
    """What a session needs of a network, which is a torch module: `EndoMamba` and its backbone."""

    def step(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Output, tuple[Tensor, ...]]:
        """Frames (b, c, t, h, w) and the state before them: outputs and the state after them."""

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state before the first frame: the next index (b,), then others, (b, ...) each."""


class StreamingSession:
    """Answers for frames as they come, equal to those on the whole clip, for any cut into chunks.

    What is kept does not grow: `state_bytes` for each stream, 0.70 MB for EndoMamba-small (the
    authors' code keeps 0.74 MB, one input of each convolution more than it needs). Streams of a
    batch do not see each other. A call that fails leaves the session as it was.

    The network is put into evaluation mode and must not be changed while it is in use. Frames go
    to its device and dtype.

    Args:
        model: A network with `step` and `initial_state`, such as `EndoMamba`.
    """

    def __init__(self, model: Recurrent) -> None:
        if not hasattr(model, "step") or not hasattr(model, "initial_state"):
            raise TypeError(
                f"a {type(model).__name__} cannot be asked frame by frame: it has no step; "
                "give an EndoMamba"
            )
        self.model: Any = model.eval()  # type: ignore[attr-defined]
        self._state: tuple[Tensor, ...] | None = None
        self._frame_size: tuple[int, ...] = ()

    @property
    def index(self) -> int:
        """How many frames of each stream have been seen."""
        return 0 if self._state is None else int(self._state[0][0])

    @property
    def state_bytes(self) -> int:
        """Bytes that are kept of one stream."""
        return sum(x.nbytes for x in self.model.initial_state(1))

    @torch.inference_mode()
    def step(self, frames: Tensor) -> Output:
        """What the network says about the next frames.

        Args:
            frames: One frame of each stream, (b, c, h, w), or a chunk, (b, c, t, h, w), of floating
                point, prepared as in training.

        Returns:
            What the network's `forward` gives for these frames; without the time axis for (b, c, h,
            w).

        Raises:
            ValueError: If the frames do not fit the network, the number of streams or the frame
                size changes in the middle, or a value is not finite, which would stay in the state
                for good.
        """
        single = frames.ndim == 4
        clip = frames.unsqueeze(2) if single else frames
        self._check(clip)
        weight = next(self.model.parameters())
        outputs, self._state = self.model.step(clip.to(weight.device, weight.dtype), self._state)
        self._frame_size = tuple(clip.shape[3:])
        return _first_frame(outputs) if single else outputs

    def reset(self) -> None:
        """Forget all frames: the next one is the first, of any size and number of streams."""
        self._state, self._frame_size = None, ()

    def save(self, path: str | Path) -> None:
        """Write the state, whole or not at all: safetensors, with plain JSON in their header.

        Raises:
            ValueError: If no frame has been seen.
        """
        if self._state is None:
            raise ValueError("no frame has been seen, so there is no state to save; step first")
        path = Path(path)
        about = {"network": self._fingerprint(), "frame_size": self._frame_size}
        tensors = {str(i): x.detach().cpu().contiguous().clone() for i, x in enumerate(self._state)}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                file.write(save(tensors, {FORMAT: json.dumps(about)}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If the file holds no state, or one of another network: other sizes, weights
                or precision.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})[FORMAT])
                state = tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
            size = tuple(int(side) for side in about["frame_size"])
            fingerprint, streams = about["network"], len(state[0])
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no state of a stream; give a file that StreamingSession.save wrote"
            ) from error
        fresh = self.model.initial_state(streams)
        shapes, wanted = ([(x.shape, x.dtype) for x in tensors] for tensors in (state, fresh))
        if fingerprint != self._fingerprint() or shapes != wanted:
            raise ValueError(
                f"{path} is the state of another network; build the session with the weights and "
                "precision that it was saved with"
            )
        self._state = tuple(x.to(like.device) for x, like in zip(state, fresh, strict=True))
        self._frame_size = size

    def _check(self, clip: Tensor) -> None:
        if clip.ndim != 5:
            raise ValueError(
                f"frames are {tuple(clip.shape)}; give (streams, channels, h, w), or (streams, "
                "channels, frames, h, w)"
            )
        if not clip.is_floating_point() or 0 in clip.shape:
            raise ValueError(
                f"frames are {clip.dtype} of shape {tuple(clip.shape)}; give at least one frame, "
                "of floating point, prepared as in training"
            )
        if self._state is not None:
            streams, size = len(self._state[0]), tuple(clip.shape[3:])
            if len(clip) != streams:
                raise ValueError(
                    f"{len(clip)} streams came and the session is in the middle of {streams}; "
                    "reset it, or open one session for each number of streams"
                )
            if size != self._frame_size:
                raise ValueError(
                    f"frames of {size} came in the middle of a stream of {self._frame_size}; "
                    "resize them, or reset the session"
                )
        if not bool(torch.stack(clip.aminmax()).isfinite().all()):
            raise ValueError(
                "a frame holds values that are not finite, which would stay in the state for "
                "good; leave it out"
            )

    def _fingerprint(self) -> str:
        """Of the network's class, sizes, precision and weights."""
        digest = hashlib.sha256(type(self.model).__name__.encode())
        for name, x in self.model.state_dict().items():
            digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _first_frame(outputs: Output) -> Output:
    """Outputs of one frame, without their time axis."""
    if isinstance(outputs, Tensor):
        return outputs[:, :, 0] if outputs.ndim == 5 else outputs[:, 0]
    return type(outputs)(_first_frame(x) for x in outputs)
