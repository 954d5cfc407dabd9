"""Teachers by what a user types: KIND:PATH."""

from collections.abc import Sequence
from pathlib import Path

from pretrain.teachers.endomamba import endomamba_teacher
from pretrain.teachers.features import FeatureTeacher
from pretrain.teachers.huggingface import huggingface_teacher
from pretrain.teachers.interface import Teacher

KINDS = {
    "hf": "the local folder of a video or image model of transformers",
    "endomamba": "a run of ours, or its safetensors file",
    "features": "a folder that python -m pretrain teacher-features wrote",
}
"""Kinds, and what their path is."""


def open_teacher(told: str, contents: Sequence[str] | None = None) -> Teacher:
    """The teacher that KIND:PATH names.

    Args:
        told: Such as "hf:models/videomae-base".
        contents: Digest of each video of the corpus, which features on disk must match; None where
            there is no corpus, and a teacher that runs is needed.

    Raises:
        FileNotFoundError: If the path leads to no teacher.
        ValueError: If the kind is unknown, or the teacher cannot be used.
    """
    kind, colon, path = told.partition(":")
    if not (kind in KINDS and colon and path):
        raise ValueError(
            f"teacher is {told!r}; give KIND:PATH with one of "
            + ", ".join(f"{name} ({what})" for name, what in KINDS.items())
        )
    if kind == "hf":
        return huggingface_teacher(Path(path))
    if kind == "endomamba":
        return endomamba_teacher(Path(path))
    if contents is None:
        raise ValueError(f"{told} are features already; name a teacher that runs")
    return FeatureTeacher(Path(path), contents)
