"""The flags of upscale, eval and metrics."""

from __future__ import annotations

import argparse

from rdn_fast.config import SCALES
from rdn_fast.flags.shared import DEVICES, add_degradation, add_weights


def upscale(commands) -> None:
    parser = commands.add_parser(
        "upscale", help="make pictures larger", description="Make pictures larger with an RDN."
    )
    flag = parser.add_argument
    input_help = "pictures, folders of pictures, or quoted glob patterns"
    flag("-i", "--input", required=True, action="extend", nargs="+", metavar="IN", help=input_help)
    output_help = "folder to write to; for a single picture also a file"
    flag("-o", "--output", required=True, metavar="OUT", help=output_help)
    default_scale = "2; for a size as below the smallest that reaches it in the fewest passes"
    add_weights(parser, ", or an ONNX file of any network for super-resolution", default_scale)
    _add_sizes(parser)
    tile_help = "edge of the tiles in LR pixels, 0: none (default: what suits the device)"
    flag("-t", "--tile", type=int, help=tile_help)
    pad_help = (
        "LR pixels that a tile sees beyond its edge; exact: as many as the model looks at, equal to no tiles at all"
    )
    flag("--tile-pad", default="10", metavar="N|exact", help=pad_help)
    flag("--suffix", default="out", help="added to names as _SUFFIX; an empty one adds nothing")
    formats = ("auto", "png", "jpg", "webp", "tif", "avif", "heic", "jxl")
    flag("--ext", default="auto", choices=formats, help="format to write; auto: the picture's own")
    quality_help = "of JPEG, WebP, AVIF, HEIC and JPEG XL, 1 to 100 (default: 95, whose losses are hardly seen)"
    flag("--quality", type=int, metavar="N", help=quality_help)
    lossless_help = "WebP and JPEG XL without loss, or with (default: as the picture itself)"
    flag("--lossless", action=argparse.BooleanOptionalAction, help=lossless_help)
    flag("--fp32", action="store_true", help="compute in float32 throughout")
    ensemble_help = "mean over the eight turns and mirror images: a little better, eight times the work"
    flag("--self-ensemble", action="store_true", help=ensemble_help)
    recursive_help = "folders with all that lies in them; OUT gets the same folders"
    flag("-r", "--recursive", action="store_true", help=recursive_help)
    flag("--overwrite", action="store_true", help="make pictures anew that are there already")
    limit_help = "refuse pictures that enter the model with more, as files made to exhaust the memory have; 0: no limit"
    flag("--max-pixels", type=int, default=178_956_970, metavar="N", help=limit_help)
    flag("--device", default="auto", help=DEVICES)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    outscale_help = (
        "this many times as large, also 3.5 or 0.5: through the model as often as needed, then resampled to the size"
    )
    flag("--outscale", type=float, metavar="FACTOR", help=outscale_help)
    flag("--width", type=int, metavar="PIXELS", help="of the result; the height follows from the picture's shape")
    height_help = "of the result; with --width it is exactly of both, stretched where the picture's shape is another"
    flag("--height", type=int, metavar="PIXELS", help=height_help)
    flag("--longest", type=int, metavar="PIXELS", help="of the result's longer edge")


def eval_(commands) -> None:
    parser = commands.add_parser("eval", help="PSNR and SSIM of weights over sets of pictures, bicubic beside them")
    default_scale = "that of the first h5 file of --eval-file, else 2"
    add_weights(parser, ", or an ONNX file of any network for super-resolution", default_scale)
    flag = parser.add_argument
    sets_help = "evaluation h5 files, or folders of HR images"
    flag("--eval-file", action="extend", nargs="+", default=[], metavar="SET", help=sets_help)
    lr_help = (
        "LR pictures of each SET, in order, by name; without it those that lie with a SET under customary names are "
        "used, unless --bicubic or --degradation makes LR images"
    )
    flag("--eval-lr-dir", action="extend", nargs="+", default=[], metavar="DIR", help=lr_help)
    flag("--data", metavar="DIR", help="every set that lies in this folder: Set5, Set14, ...")
    flag("--self-ensemble", action="store_true", help="mean over the eight turns and mirror images")
    add_degradation(parser, "LR images of folders, and the bicubic beside the model")
    flag("--strict", action="store_true", help="stop at a file that cannot be evaluated instead of skipping it")
    flag("--device", default="auto", help=DEVICES)
    for name in ("json", "csv", "markdown"):
        flag(f"--{name}", metavar="FILE", help=f"write the tables there as {name}, too")
    images_help = "write the up-scaled pictures there, as PNG, a folder for each set"
    flag("--save-images", metavar="DIR", help=images_help)
    figure_help = "draw where the model is worst and best against bicubic: HR, bicubic, RDN, error"
    flag("--figure", metavar="FILE.png", help=figure_help)


def metrics(commands) -> None:
    help_text = "PSNR and SSIM of finished pictures in every convention, and which of them gives a printed number"
    parser = commands.add_parser("metrics", help=help_text, description=help_text)
    flag = parser.add_argument
    flag("sr", metavar="SR", help="folder of results of any program, or one picture")
    flag("hr", metavar="HR", help="folder of the HR pictures, or one; names may lack what SR names end in, as _x2_SR")
    flag("--scale", type=int, choices=SCALES, help="for the crops: none, the scale, scale + 6 (default: as names tell)")
    flag("--claim", metavar="NUMBER", help="say which convention gives this PSNR, as 38.24, or SSIM, as 0.9614")
    flag("--strict", action="store_true", help="stop at a file without partner or of another size instead of naming it")
    for name in ("json", "csv", "markdown"):
        flag(f"--{name}", metavar="FILE", help=f"write the table there as {name}, too")
