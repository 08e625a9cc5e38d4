"""From image files to batches.

Read plugins, image_formats, decode, images, pairs, prepare, h5, heaps, sampler, patches, prefetch.
"""
