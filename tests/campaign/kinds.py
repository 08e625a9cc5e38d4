"""All kinds of trial, by name, in the order in which a campaign makes them."""

from tests.campaign import changed_files, damaged_h5, damaged_weights, kills, wrong_dtypes

_MODULES = (damaged_h5, damaged_weights, kills, changed_files, wrong_dtypes)
KINDS = {kind.name: kind for module in _MODULES for kind in module.KINDS}
