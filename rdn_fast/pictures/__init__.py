"""Pictures through the model. Read metadata, picture, sizes, enlarge, resize, encode, paths, precisions, tiled,
upscale(_files)."""
