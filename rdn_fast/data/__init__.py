"""Image folder -> h5 (prepare, folder, repack) -> memory-mapped pairs (h5) -> which patches (augment, loader) -> float batches (feed)."""
