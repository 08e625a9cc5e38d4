"""From image files to batches. Read image_formats, decode, images, pairs, h5_writer, prepare, h5, sampler, augment, patches, prefetch."""
