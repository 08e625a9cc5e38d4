"""Pictures through the model. Read metadata, picture, enlarge, encode, paths, tiled, upscale, upscale_files."""
