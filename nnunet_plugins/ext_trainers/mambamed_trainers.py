"""What nnU-Net imports from the folder in `nnUNet_extTrainer`: all our trainers, by name.

Only for installations where Python's start-up files are not read; see `nnunet_plugins.discovery`.
"""

from nnunet_plugins.registry import find_class


def __getattr__(name: str) -> type:
    found = None if name.startswith("_") else find_class(name)
    if found is None:
        raise AttributeError(name)
    return found
