"""From image files to batches.

Read image_formats, decode, images, pairs, prepare, h5, heaps, sampler, patches, prefetch.
"""
