"""Clips of unlabelled videos: find videos, look through them, draw clips.

videos = find_videos("corpus.csv")
findings = first_pass(videos, "cache")
clips = VideoClips(findings, ClipSettings(frames=16, stride=4, size=(224, 224)))
clips.set_epoch(0)
clips[0]["clip"]  # float32 (3, 16, 224, 224), RGB in [0, 1]
"""

from pretrain.videos.cache import FrameCache
from pretrain.videos.clips import VideoClips
from pretrain.videos.first_pass import Findings, Kept, describe, first_pass
from pretrain.videos.inspection import Limits, UnusableVideo
from pretrain.videos.settings import ClipSettings
from pretrain.videos.sources import Video, find_videos

__all__ = [
    "ClipSettings",
    "Findings",
    "FrameCache",
    "Kept",
    "Limits",
    "UnusableVideo",
    "Video",
    "VideoClips",
    "describe",
    "find_videos",
    "first_pass",
]
