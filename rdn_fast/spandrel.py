"""RDN for spandrel, the loader of chaiNNer and ComfyUI. Needs the package spandrel: pip install '.[spandrel]'.

import rdn_fast.spandrel

rdn_fast.spandrel.install()
model = spandrel.ModelLoader().load_from_file("rdn_x2.safetensors")
"""

from __future__ import annotations

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    StateDict,
    UnsupportedModelError,
)

from rdn_fast import devices
from rdn_fast.errors import UserError
from rdn_fast.model import RDN, meta_model
from rdn_fast.weights import formats
from rdn_fast.weights.convert import to_weights

_KEYS = {"sfe1.weight", "rdbs.0.lff.weight", "upscale.0.weight", "output.weight"}


class RDNArch(Architecture[RDN]):
    """RDN as an architecture of spandrel's."""

    def __init__(self):
        super().__init__(id="RDN", detect=_is_rdn)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[RDN]:
        """Return the descriptor of weights of any layout (docs/weights.md), for RGB in 0..1 at every layout.

        Raises spandrel's UnsupportedModelError, in one line: not exactly an RDN, or with values that are not finite.
        """
        try:
            weights = to_weights(state_dict, "the state dict")
        except UserError as error:
            raise UnsupportedModelError(str(error)) from None
        c = weights.config
        return ImageModelDescriptor(
            meta_model(c).to_empty(device=devices.all_devices()[-1]),  # the descriptor loads the weights into it
            weights.state,
            architecture=self,
            purpose="SR",
            tags=[f"{c.num_features}nf", f"{c.num_blocks}nb", f"{c.num_layers}nl", f"{c.growth_rate}gr"],
            supports_half=True,
            supports_bfloat16=True,
            scale=c.scale,
            input_channels=3,
            output_channels=3,
            call_fn=_call,
        )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Let spandrel's loaders load RDN weights from now on. A second call changes nothing.

    RDN comes behind what the registry holds already: no architecture of spandrel 0.4 takes an RDN's weights for its
    own.
    """
    registry.add(ArchSupport.from_architecture(RDNArch()), ignore_duplicates=True)


def _is_rdn(state_dict: StateDict) -> bool:
    """Return whether this looks like an RDN of a known layout; load() then says what is wrong with it, if anything."""
    try:
        return formats.to_reference(state_dict, "").state.keys() >= _KEYS
    except UserError:
        return False


def _call(model: RDN, image: torch.Tensor) -> torch.Tensor:
    return model(image.contiguous(memory_format=devices.memory_format(image.device)))
