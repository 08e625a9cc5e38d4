"""The flags of every command. Flags of train and tune are built from the fields of config.py."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Iterable

from rdn_fast import __version__
from rdn_fast.config import DEGRADATION_HELP, PRESETS, SCALES, ModelConfig, TrainConfig
from rdn_fast.errors import UserError

_DEVICES = "auto, cpu, cuda[:i] or npu[:i]"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of a flag that has one, unless the help already tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def parse_known_args(self, args=None, namespace=None):
        """Parse, but raise UserError here, where the command and so its --help is known, for what is not understood."""
        if self._subparsers is None:
            self._check_names(args)  # first: argparse would call a mistyped required flag missing
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options, rest

    def _check_names(self, words: list[str]) -> None:
        known = self._option_string_actions
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                self.error(f"{name}: no such flag" + "".join(f" (did you mean {flag}?)" for flag in nearest))

    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the flags")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; `command` of its result is the command's name.

    It raises UserError instead of printing the usage.
    """
    description = "Train, evaluate and use Residual Dense Networks for super-resolution, fast."
    parser = _Parser(prog="rdn-fast", description=description)
    parser.add_argument("--version", action="version", version=f"rdn-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in (_train, _tune, _upscale, _eval, _metrics, _convert, _export, _prepare, _doctor, _demo):
        add(commands)
    return parser


def with_dashes(words: Iterable[str]) -> list[str]:
    """Return the arguments with dashes in flag names: --loss_scale_value=1 -> --loss-scale-value=1."""
    return [_with_dashes(word) for word in words]


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _train(commands) -> None:
    description = "Train a model. Flags given beside --preset win over it."
    parser = commands.add_parser("train", help="train a model", description=description)
    flag = parser.add_argument
    flag("--nproc", type=int, default=1, help="ranks to start on this node, one per device")
    nnodes_help = "nodes that take part, each started with the same command"
    flag("--nnodes", default="1", metavar="N|MIN:MAX", help=nnodes_help)
    endpoint_help = "where the nodes meet: one of them, and a free port of it"
    flag("--rdzv-endpoint", metavar="HOST:PORT", default=argparse.SUPPRESS, help=endpoint_help)
    id_help = "tells runs apart that meet at one place"
    flag("--rdzv-id", metavar="NAME", default=argparse.SUPPRESS, help=id_help)
    restarts_help = (
        "how often the ranks are started anew, from the last checkpoint, when one is killed or a device fails"
    )
    flag("--max-restarts", type=int, default=0, metavar="K", help=restarts_help)
    _add_config_flags(parser)


def _tune(commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="time the dense block's implementations here, or calibrate the loss scale",
        description="Time the dense block's implementations for a run with these flags (train's), "
        "and remember the fastest.",
        conflict_handler="resolve",  # the two flags below replace train's
    )
    _add_config_flags(parser)
    calibrate_help = (
        "instead: choose the loss scale as --loss-scale-value auto does, "
        "and show the gradients' histogram it is chosen from"
    )
    flag = parser.add_argument
    flag("--loss-scale", dest="calibrate", action="store_true", default=argparse.SUPPRESS, help=calibrate_help)
    outputs_help = "where --loss-scale writes loss_scale.csv and loss_scale.svg"
    flag("--outputs-dir", default="outputs/tune", help=outputs_help)


def _upscale(commands) -> None:
    parser = commands.add_parser(
        "upscale", help="make pictures larger", description="Make pictures larger with an RDN."
    )
    flag = parser.add_argument
    input_help = "pictures, folders of pictures, or quoted glob patterns"
    flag("-i", "--input", required=True, action="extend", nargs="+", metavar="IN", help=input_help)
    output_help = "folder to write to; for a single picture also a file"
    flag("-o", "--output", required=True, metavar="OUT", help=output_help)
    _add_weights(parser, or_onnx=", or an ONNX file of any network for super-resolution")
    flag("-s", "--scale", type=int, help="checked against the weights, which know it; for other sizes see --outscale")
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
    flag("--device", default="auto", help=_DEVICES)


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


def _eval(commands) -> None:
    parser = commands.add_parser("eval", help="PSNR and SSIM of weights over sets of pictures, bicubic beside them")
    _add_weights(parser, or_onnx=", or an ONNX file of any network for super-resolution")
    flag = parser.add_argument
    sets_help = "evaluation h5 files, or folders of HR images"
    flag("--eval-file", action="extend", nargs="+", default=[], metavar="SET", help=sets_help)
    flag("--data", metavar="DIR", help="every set that lies in this folder: Set5, Set14, ...")
    flag("--scale", type=int, help="checked against the weights, which know it")
    flag("--self-ensemble", action="store_true", help="mean over the eight turns and mirror images")
    _add_degradation(parser, "LR images of folders, and the bicubic beside the model")
    flag("--strict", action="store_true", help="stop at a file that cannot be evaluated instead of skipping it")
    flag("--device", default="auto", help=_DEVICES)
    for name in ("json", "csv", "markdown"):
        flag(f"--{name}", metavar="FILE", help=f"write the tables there as {name}, too")
    images_help = "write the up-scaled pictures there, as PNG, a folder for each set"
    flag("--save-images", metavar="DIR", help=images_help)
    figure_help = "draw where the model is worst and best against bicubic: HR, bicubic, RDN, error"
    flag("--figure", metavar="FILE.png", help=figure_help)


def _metrics(commands) -> None:
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


def _convert(commands) -> None:
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


def _export(commands) -> None:
    parser = commands.add_parser("export", help="the model as ONNX, checked against torch")
    _add_weights(parser)
    flag = parser.add_argument
    flag("-o", "--output", required=True, metavar="FILE", help="the file to write")
    flag("--dynamic", action="store_true", help="batch, height and width may be anything; else they are --size")
    size_help = "LR height and width of the model's input"
    flag("--size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"), help=size_help)
    flag("--opset", type=int, help="ONNX operator set (default: 13; Ascend's atc reads 11 to 18)")
    fp16_help = "weights and arithmetic in half precision; input and output stay float32"
    flag("--fp16", action="store_true", help=fp16_help)


def _prepare(commands) -> None:
    help_text = "make an h5 file from a folder of images, or one that can be mapped from another h5 file"
    parser = commands.add_parser("prepare", help=help_text)
    flag = parser.add_argument
    flag("--images-dir", help="folder of HR images")
    flag("--output-path", help="the h5 file to write")
    flag("--scale", type=int, default=2, choices=SCALES, help="up-scaling factor")
    flag("--eval", action="store_true", help="whole images for evaluation instead of five half-size crops")
    compat_help = "resize HR to multiples of the scale, as yjn870's code does, instead of cropping"
    flag("--yjn870-compat", action="store_true", help=compat_help)
    _add_degradation(parser, "LR images")
    flag("-r", "--recursive", action="store_true", help="folders with all that lies in them")
    flag("--strict", action="store_true", help="stop at a file that cannot be read instead of skipping it")
    repack_help = (
        "instead of all these: rewrite a chunked, compressed or float h5 file as the uint8 file that training maps"
    )
    flag("--repack", nargs=2, metavar=("OLD.h5", "NEW.h5"), help=repack_help)


def _doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="what this machine has for training, and what brings the rest")
    parser.add_argument("--device", default="auto", help=_DEVICES)


def _demo(commands) -> None:
    help_text = "train a small model on photographs, compare it with bicubic and draw the result"
    parser = commands.add_parser("demo", help=help_text)
    parser.add_argument("--outputs-dir", default="outputs/demo", help="where data, weights and compare.png go")
    parser.add_argument("--device", default="auto", help=_DEVICES)


def _add_weights(parser: argparse.ArgumentParser, or_onnx: str = "") -> None:
    help_text = f"weights of any RDN{or_onnx} (default: the small x2 model that comes with rdn_fast)"
    parser.add_argument("-w", "--weights-file", metavar="WEIGHTS", help=help_text)


def _add_degradation(parser: argparse.ArgumentParser, of_what: str) -> None:
    bicubic_help = f"whose makes the {of_what}; matlab: imresize of a uint8 image, as benchmarks were made"
    parser.add_argument("--bicubic", default="pillow", choices=("pillow", "matlab"), help=bicubic_help)
    parser.add_argument("--degradation", default="bi", metavar="KIND", help=DEGRADATION_HELP)


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add --preset and a flag for each field of ModelConfig and TrainConfig. Only given flags become attributes."""
    preset_help = "settings by name"
    parser.add_argument("--preset", choices=tuple(PRESETS), help=preset_help, default=argparse.SUPPRESS)
    for cls in (ModelConfig, TrainConfig):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _add_field(parser, field, hints[field.name])


def _add_field(parser: argparse.ArgumentParser, field: dataclasses.Field, hint) -> None:
    help_text = field.metadata["help"]
    if field.default not in (None, False) and "default" not in help_text:
        help_text += f" (default: {field.default})"
    names = (field.name.replace("_", "-"), *field.metadata["aliases"])
    if hint is bool:
        value = {"action": "store_true"}
    else:
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
        value = {"type": field.metadata["parse"] or kinds[0], "choices": field.metadata["choices"]}
    flags = (f"--{name}" for name in names)
    parser.add_argument(*flags, dest=field.name, help=help_text, default=argparse.SUPPRESS, **value)
