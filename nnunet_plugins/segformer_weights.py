"""`mambamed segformer-weights`: SegFormer's weights as `-pretrained_weights` of Vivim."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from nnunet_plugins.bundle.training import read_weights, write_weights
from nnunet_plugins.imagenet import IMAGENET_MEAN, IMAGENET_STD
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.released_vivim import load_segformer
from nnunet_plugins.registry import find_class

FILES = ("model.safetensors", "pytorch_model.bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed segformer-weights`."""
    parser.add_argument(
        "segformer", type=Path,
        help="folder or weights of a SegFormer of Hugging Face's transformers, such as "
        "nvidia/segformer-b3-finetuned-ade-512-512",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help=".pth file to write")
    parser.add_argument(
        "--trainer", default="VivimTrainer", help="that will be given the weights (VivimTrainer)"
    )
    parser.add_argument("--channels", type=int, default=3, help="of the dataset's frames (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights SegFormer lacks")


def run(args: argparse.Namespace) -> int:
    """Write the file and say how to use it."""
    weights, new = vivim_weights(args.segformer, args.trainer, args.channels, args.seed)
    write_weights({"network_weights": weights}, args.out)
    print(f"{args.out}: {len(weights) - len(new)} tensors of SegFormer, {len(new)} new ones")
    print(f"Next: nnUNetv2_train ... -tr {args.trainer} -pretrained_weights {args.out}")
    return 0


def vivim_weights(
    segformer: Path, trainer: str = "VivimTrainer", channels: int = 3, seed: int = 0
) -> tuple[dict[str, Tensor], list[str]]:
    """All weights of the trainer's Vivim, those that SegFormer has from there; names of the rest.

    SegFormer saw images normalised by ImageNet's mean and deviation and nnU-Net shows colours in
    [0, 1], so the first convolution takes the normalisation over. They differ at the border alone,
    where padding is black instead of ImageNet's mean. Grey images get the mean colour's.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If they are none of SegFormer, or the trainer's network is of other sizes.
    """
    cls = find_class(trainer)
    network_class = getattr(cls, "network_class", None)
    if cls is None or network_class is not Vivim:
        raise ValueError(f"{trainer} trains no Vivim; name VivimTrainer, or VivimTrainer_b0 to _b5")
    file = next((segformer / name for name in FILES if (segformer / name).is_file()), segformer)
    torch.manual_seed(seed)
    network = Vivim(channels, 2, **cls.network_options)
    new = load_segformer(network, read_weights(file))
    embed = network.encoder.stages[0].embed.proj
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    if channels != 3:
        mean, deviation = mean.mean(), deviation.mean()
    with torch.no_grad():
        embed.weight /= deviation
        embed.bias -= (embed.weight * mean).sum((1, 2, 3))
    return dict(network.state_dict()), new
