"""nnU-Net trainers, one class a file, the file named like the class.

Trainers with options in their names (`nnunet_plugins.registry`) are attributes of this package,
so that they can be imported and pickled by name; those without are in the module of their name.
"""

from nnunet_plugins.registry import find_class


def __getattr__(name: str) -> type:
    found = None if name.startswith("_") else find_class(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
