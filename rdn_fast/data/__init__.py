"""From image files to batches. Read images, pairs, h5_writer, prepare; then h5, sampler, augment, patches, slot_ring, prefetch."""
