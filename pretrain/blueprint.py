"""Which network is pretrained: a class and its arguments, as they travel with the weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnunet_plugins import networks
from nnunet_plugins.networks.endomamba import SMALL
from nnunet_plugins.networks.hymamba import PAPER_WIDTHS, SMALL_WIDTHS, stage_widths
from pretrain.plan import Plan

HALVINGS = 4
"""Of every axis, where no plan says otherwise: a token spans 16 voxels."""

NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hymamba": ("HyMamba", {"features_per_stage": PAPER_WIDTHS}),
    "hymamba_small": ("HyMamba", {"features_per_stage": SMALL_WIDTHS}),
    "vanilla_mamba": ("VanillaMamba", {}),
}
"""Names on the command line: the class, and widths for any number of stages."""

CLIP_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "endomamba": {"size": "small"},
    "endomamba_tiny": {"size": "tiny"},
    "endomamba_middle": {"size": "middle"},
    "endomamba_small": {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()},
}
"""Names on the command line, and arguments of EndoMamba; as of nnU-Net's trainers, `_small` is for
CPUs and `endomamba` has the published size, which the class calls small."""


@dataclass(frozen=True)
class Blueprint:
    """A network that can be built again.

    Args:
        network: Name of the class in `nnunet_plugins.networks`.
        input_channels: Channels of the image.
        arguments: Its other arguments, plain JSON.
    """

    network: str
    input_channels: int
    arguments: dict[str, Any]

    @classmethod
    def named(
        cls, name: str, input_channels: int, plan: Plan | None, **options: Any
    ) -> "Blueprint":
        """One of `NETWORKS` on the stages of a plan, or on four halvings without one.

        Args:
            name: A key of `NETWORKS`.
            input_channels: Channels of the image.
            plan: Whose strides and kernel sizes are taken.
            options: Further arguments of the class.

        Raises:
            ValueError: If there is no network of this name.
        """
        if name not in NETWORKS:
            raise ValueError(f"there is no network {name!r}; use one of {', '.join(NETWORKS)}")
        network, sizes = NETWORKS[name]
        arguments = {"strides": [[1] * 3, *[[2] * 3] * HALVINGS], **options}
        if "features_per_stage" in sizes:
            arguments["kernel_sizes"] = [[3] * 3] * (HALVINGS + 1)
        blueprint = cls(network, input_channels, arguments | {k: list(v) for k, v in sizes.items()})
        return blueprint.on(plan) if plan else blueprint

    @classmethod
    def of_clips(cls, name: str, input_channels: int, **options: Any) -> "Blueprint":
        """One of `CLIP_NETWORKS`; options are further arguments of the class.

        Raises:
            ValueError: If there is no network of this name.
        """
        if name not in CLIP_NETWORKS:
            raise ValueError(f"there is no network {name!r}; use one of {', '.join(CLIP_NETWORKS)}")
        return cls("EndoMamba", input_channels, {**CLIP_NETWORKS[name], **options})

    @property
    def has_stages(self) -> bool:
        """Whether plans choose its stages; video networks have their own."""
        return "strides" in self.arguments

    def on(self, plan: Plan) -> "Blueprint":
        """The same network on the stages of a plan; widths are cut short or repeated.

        Raises:
            ValueError: If the network needs stages and the plan has none.
        """
        if not self.has_stages:
            return self
        if not plan.strides:
            raise ValueError(
                f"{plan.path} plans {plan.configuration} for a video network, whose stages are its "
                f"own; {self.network} needs a plan of volumes"
            )
        stages: dict[str, Any] = {"strides": plan.strides}
        if "features_per_stage" in self.arguments:
            widths = stage_widths(self.arguments["features_per_stage"], len(plan.strides))
            stages |= {"kernel_sizes": plan.kernel_sizes, "features_per_stage": list(widths)}
        return dataclasses.replace(self, arguments=self.arguments | stages)

    def build(self, num_classes: int = 2) -> nn.Module:
        """The network, freshly initialised.

        Raises:
            ValueError: If the class is not ours or refuses the arguments.
        """
        cls = getattr(networks, self.network, None)
        if cls is None:
            raise ValueError(
                f"there is no network {self.network!r}; this version of mambamed has "
                f"{', '.join(networks.__all__)}"
            )
        return cls(self.input_channels, num_classes, **self.arguments)

    def plain(self) -> dict[str, Any]:
        """As plain JSON; `Blueprint(**plain)` gives it back."""
        return dataclasses.asdict(self)
