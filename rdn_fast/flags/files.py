"""The flags of convert, export, models and prepare."""

from __future__ import annotations

from rdn_fast.config import SCALES
from rdn_fast.flags.shared import add_degradation, add_weights


def convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="weights of other projects to ours, and back",
        description="Read weights of any RDN and write them anew.",
    )
    flag = parser.add_argument
    source_help = (
        "weights or a checkpoint of yjn870, torchSR, Ascend, mmagic, EDSR-PyTorch, Lornatang, idealo, UpscalerJS (the "
        "folder), yulunzhang, lizhengwei1992, BasicSR or ours"
    )
    flag("source", metavar="IN", help=source_help)
    target_help = "the file to write, not IN: .pth or .safetensors, which also holds the metadata"
    flag("target", metavar="OUT", help=target_help)
    layouts = ("reference", "edsr")
    flag("--layout", default="reference", choices=layouts, help="names and value range to write")
    flag("--fp16", action="store_true", help="write half-precision numbers: half the size")
    metadata_help = "said of the weights in a .safetensors file, for example licence=MIT or 'training_data=DIV2K'"
    flag("--metadata", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=metadata_help)


def export(commands) -> None:
    parser = commands.add_parser("export", help="the model as ONNX, checked against torch")
    add_weights(parser)
    flag = parser.add_argument
    flag("-o", "--output", required=True, metavar="FILE", help="the file to write")
    flag("--dynamic", action="store_true", help="batch, height and width may be anything; else they are --size")
    size_help = "LR height and width of the model's input"
    flag("--size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"), help=size_help)
    flag("--opset", type=int, help="ONNX operator set (default: 13; Ascend's atc reads 11 to 18)")
    fp16_help = "weights and arithmetic in half precision; input and output stay float32"
    flag("--fp16", action="store_true", help=fp16_help)


def models(commands) -> None:
    help_text = "the models that come with rdn_fast: scale, size, PSNR, licence, training data"
    parser = commands.add_parser("models", help=help_text, description=f"List {help_text}.")
    parser.add_argument("--json", metavar="FILE", help="write the list there as json, too")


def prepare(commands) -> None:
    help_text = "make an h5 file from a folder of images, or one that can be mapped from another h5 file"
    parser = commands.add_parser("prepare", help=help_text)
    flag = parser.add_argument
    flag("--images-dir", help="folder of HR images")
    flag("--lr-dir", help="folder of LR pictures that belong to them by name, instead of making LR images")
    flag("--output-path", help="the h5 file to write")
    flag("--scale", type=int, default=2, choices=SCALES, help="up-scaling factor")
    flag("--eval", action="store_true", help="whole images for evaluation instead of five half-size crops")
    compat_help = "resize HR to multiples of the scale, as yjn870's code does, instead of cropping"
    flag("--yjn870-compat", action="store_true", help=compat_help)
    add_degradation(parser, "LR images")
    flag("-r", "--recursive", action="store_true", help="folders with all that lies in them")
    flag("--strict", action="store_true", help="stop at a file that cannot be read instead of skipping it")
    tiles_help = (
        "instead of five crops: tiles of N x N LR pixels, as 96, that overlap by a third or more; every part of a "
        "large picture then counts as much as one of a small picture"
    )
    flag("--tiles", type=int, metavar="N", help=tiles_help)
    sizes_help = "HR images in several sizes, as 1 0.8 0.6: a reduced photograph is sharper (default: 1)"
    flag("--sizes", type=float, nargs="+", metavar="SIZE", default=[1.0], help=sizes_help)
    unseen_help = "leave out, and name, pictures that these folders of evaluation sets show, in any size or mirrored"
    flag("--unseen", nargs="+", metavar="SET", help=unseen_help)
    repack_help = (
        "instead of all these: rewrite a chunked, compressed or float h5 file as the uint8 file that training maps"
    )
    flag("--repack", nargs=2, metavar=("OLD.h5", "NEW.h5"), help=repack_help)
