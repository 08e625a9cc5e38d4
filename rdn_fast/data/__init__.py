"""From image files to batches. Read images, pairs, h5_writer, prepare, h5, sampler, augment, patches, prefetch."""
