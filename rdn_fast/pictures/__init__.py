"""Pictures through the model. Read picture, png_tiff16, encode, paths, tile_grid, tiled, upscale, upscale_files."""
