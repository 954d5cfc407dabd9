"""The command line `mambamed`, the door to everything that is not one of nnU-Net's own commands."""

import argparse
import sys
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "doctor": ("nnunet_plugins.doctor", "what this machine has, and what to do about the rest"),
    "demo": ("nnunet_plugins.demo.pipeline", "train and score a small HyMamba from start to end"),
    "dataset": ("nnunet_plugins.data.command", "videos into nnU-Net and back; leaks of a split"),
    "check": ("nnunet_plugins.check", "find unreadable, non-finite and mismatched training cases"),
    "export-bundle": ("nnunet_plugins.bundle.export", "turn nnU-Net results into a MONAI bundle"),
    "evaluate": ("nnunet_plugins.evaluation.command", "score predicted videos against their masks"),
    "label": ("nnunet_plugins.label.command", "annotation server over a folder of studies"),
    "label-demo": ("nnunet_plugins.demo.annotation", "that server learns from a correction"),
    "stream": ("nnunet_plugins.stream.command", "a video or camera through a network as it comes"),
    "export-step": ("nnunet_plugins.stream.export", "write a network's step as ONNX or PT2 file"),
    "segformer-weights": ("nnunet_plugins.segformer_weights", "start Vivim from SegFormer"),
    "affine-regressor": ("nnunet_plugins.losses.command", "train what the affine constraint asks"),
}
"""Name of a command: the module with its `add_arguments` and `run`, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; errors a user can mend are one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="mambamed",
        description="Mamba networks for medical volumes and video, in unmodified nnU-Net v2.",
        epilog="Training and prediction are nnU-Net's own commands: nnUNetv2_train DATASET "
        "3d_fullres 0 -tr HyMambaTrainer.",
    )
    parser.add_argument("--version", action="version", version=f"mambamed {version('mambamed')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        if [name] == argv[:1]:
            import_module(module).add_arguments(command)
    args = parser.parse_args(argv)
    try:
        return import_module(COMMANDS[args.command][0]).run(args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"mambamed {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130
