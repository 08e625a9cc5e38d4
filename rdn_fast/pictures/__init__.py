"""Files of pictures through the model. Read picture, png_tiff16, paths, tiled (the engine), upscale, upscale_files."""
