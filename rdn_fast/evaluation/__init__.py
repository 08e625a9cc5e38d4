"""PSNR and SSIM over datasets. Read metrics, datasets, evaluate, tables, crops."""
