"""What MONAI Label loads with `--app`; all of it is in the installed package."""

from nnunet_plugins.label.server.app import LabelApp

__all__ = ["LabelApp"]
