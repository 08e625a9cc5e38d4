"""Pictures through the model. Read picture, enlarge, png_tiff16, encode, paths, tiled, upscale, upscale_files."""
