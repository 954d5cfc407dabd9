"""The command line `python -m pretrain`."""

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "mambamim": ("pretrain.commands.mambamim", "pretrain on unlabelled volumes"),
    "endomamba": ("pretrain.commands.endomamba", "pretrain on unlabelled videos"),
    "teacher-features": (
        "pretrain.commands.teacher_features",
        "compute the features of a teacher once and keep them on disk",
    ),
    "export": ("pretrain.commands.export", "hand pretrained weights to nnU-Net or to a bundle"),
    "label-efficiency": (
        "pretrain.commands.label_efficiency",
        "compare fine-tuning with training from scratch at several shares of the labels",
    ),
}
"""Name of a command: the module with its `add_arguments` and `run`, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; errors a user can mend are one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m pretrain", description="Pretrain Mamba networks on images without labels."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        if [name] == argv[:1]:
            import_module(module).add_arguments(command)
    args = parser.parse_args(argv)
    try:
        status: int = import_module(COMMANDS[args.command][0]).run(args)
        return status
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        print(f"python -m pretrain {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
