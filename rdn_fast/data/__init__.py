"""Image folder -> h5 (prepare) -> memory-mapped pairs (h5) -> augmented uint8 batches (augment, loader)."""
