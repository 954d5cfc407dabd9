"""Medical video as data of nnU-Net: clips in and out, raw datasets, splits and leaks."""

from nnunet_plugins.data.cases import CaseRecord, Cutting
from nnunet_plugins.data.clips import Clip, FrameStream, read_clip, write_video
from nnunet_plugins.data.from_videos import convert_images, convert_videos, dataset_folder
from nnunet_plugins.data.leaks import check_leaks
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.data.overlay import draw_overlay, write_overlay
from nnunet_plugins.data.sources import Video, find_videos
from nnunet_plugins.data.splits import grouped_splits
from nnunet_plugins.data.to_videos import write_predictions

__all__ = [
    "CaseRecord",
    "Clip",
    "Cutting",
    "FrameStream",
    "LabelScheme",
    "Video",
    "check_leaks",
    "convert_images",
    "convert_videos",
    "dataset_folder",
    "draw_overlay",
    "find_videos",
    "grouped_splits",
    "read_clip",
    "write_overlay",
    "write_predictions",
    "write_video",
]
