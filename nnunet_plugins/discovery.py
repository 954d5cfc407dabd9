"""How stock nnU-Net finds our trainers and planners by name.

nnU-Net looks every class up with one function, `recursive_find_python_class`, which walks its own
folders. The start-up file `mambamed.pth` (and its PEP 829 twin `mambamed.start`) calls `install`
when Python starts; it waits for the module of that function to be imported and wraps the function:
our names first, everything else as before. No file of nnU-Net is touched. This module imports
nothing heavy, because every start of the interpreter pays for it.

Where start-up files are not read (`pip --target`, PYTHONPATH), the variable `nnUNet_extTrainer` of
nnU-Net does it for trainers: set it to the folder that `python -m nnunet_plugins` prints.
"""

import sys

LOOKUP_MODULE = "nnunetv2.utilities.find_class_by_name"
LOOKUP_FUNCTION = "recursive_find_python_class"


def install() -> None:
    """Make stock nnU-Net find our classes, now or once it is imported; twice is as good as once."""
    if LOOKUP_MODULE in sys.modules:
        _wrap(sys.modules[LOOKUP_MODULE])
    elif not any(isinstance(finder, _LookupFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LookupFinder())


class _LookupFinder:
    """Finds the lookup module where others find it, and wraps its function after import."""

    def find_spec(self, name, path=None, target=None):
        if name != LOOKUP_MODULE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader.exec_module = _then_wrap(spec.loader.exec_module)
                return spec
        return None


def _then_wrap(exec_module):
    def exec_and_wrap(module):
        exec_module(module)
        _wrap(module)

    return exec_and_wrap


def _wrap(module) -> None:
    stock = getattr(module, LOOKUP_FUNCTION)
    if hasattr(stock, "__wrapped__"):
        return

    def find(folder, class_name, current_module, *args, **kwargs):
        import os

        from nnunet_plugins.registry import find_class

        try:
            ours, slip = find_class(class_name), None
        except ValueError as error:  # like one of ours, and none; somebody else's perhaps
            ours, slip = None, error
        try:
            found = ours or stock(folder, class_name, current_module, *args, **kwargs)
        except Exception:  # a walk through nnU-Net's folders ends where torchvision is broken
            raise slip or sys.exc_info()[1] from None
        others_follow = current_module is not None and os.environ.get("nnUNet_extTrainer")
        if found is None and slip and not others_follow:
            raise slip
        return found

    find.__wrapped__ = stock
    find.__doc__ = stock.__doc__
    setattr(module, LOOKUP_FUNCTION, find)
