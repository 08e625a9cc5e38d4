"""All kinds of trial, by name, in the order in which a campaign makes them."""

from tests.campaign import damaged_h5, damaged_weights, kills

_MODULES = (damaged_h5, damaged_weights, kills)
KINDS = {kind.name: kind for module in _MODULES for kind in module.KINDS}
