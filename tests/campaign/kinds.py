"""All kinds of trial, by name, in the order in which a campaign makes them."""

from tests.campaign import (
    changed_files,
    damaged_h5,
    damaged_weights,
    full_disk,
    kills,
    shared_cache,
    stopped_ranks,
    wrong_dtypes,
)

_MODULES = (
    *(damaged_h5, damaged_weights, wrong_dtypes, full_disk, changed_files),
    *(kills, stopped_ranks, shared_cache),
)
KINDS = {kind.name: kind for module in _MODULES for kind in module.KINDS}
