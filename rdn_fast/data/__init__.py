"""From image files to batches.

Read plugins, image_formats, decode, images, pairs, partners, given_lr, cuts, alike, prepare, h5, heaps, sampler,
patches, prefetch.
"""
