"""Pictures through the model. Read metadata, picture, sizes, enlarge, resize, encode, paths, tiled, upscale(_files)."""
