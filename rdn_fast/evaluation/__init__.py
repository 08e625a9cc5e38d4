"""PSNR and SSIM over datasets. Read metrics, picture_folder, datasets, evaluate, tables, crops; then score_folders."""
