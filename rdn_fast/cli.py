"""The command line: train's flags are built from the fields of config.py; every other command names its own few.

Dashes and underscores are the same in a flag's name. A user's mistake is one line on stderr and exit code 2.
torch is imported by the commands that need it: --help does not wait for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import types
import typing

from rdn_fast import __version__, ascend
from rdn_fast.config import PRESETS, ModelConfig, TrainConfig, settings
from rdn_fast.errors import Failure, Stopped, UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 (failed), 2 (the user's mistake), 128 + signal number (stopped)."""
    arguments = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    rank = os.environ.get("RANK", "0")
    who = "rdn-fast" if rank == "0" else f"rdn-fast [rank {rank}]"
    os.environ.setdefault(
        ascend.AUTOLOAD, "0"
    )  # torch_npu is imported when a device is picked, where its failure can be told in a line
    try:
        options = _parser().parse_args(arguments)
        return options.run(options, arguments) or 0
    except UserError as error:
        sys.stderr.write(f"{who}: error: {error}\n")  # in one piece: other ranks speak, too
        return 2
    except Failure as error:
        sys.stderr.write(f"{who}: failed: {error}\n")
        return error.code
    except RuntimeError as error:
        if (failure := ascend.autoload_failure(error)) is not None:
            sys.stderr.write(f"{who}: error: {failure}\n")
            return 2
        from rdn_fast.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        training = (
            "a smaller --batch-size, --patch-size or model, or --data-mode mmap (a run goes on with --resume auto)"
        )
        remedy = training if options.run in (_train, _tune) else "a smaller --tile, --size or image, or --device cpu"
        sys.stderr.write(f"{who}: failed: out of memory; give {remedy}\n")
        return 1
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Stopped as stopped:
        return 128 + stopped.number
    except KeyboardInterrupt:
        return 130


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default where there is one and the flag's help does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the flags")


def _parser() -> _Parser:
    parser = _Parser(
        prog="rdn-fast", description="Train, evaluate and use Residual Dense Networks for super-resolution, fast."
    )
    parser.add_argument("--version", action="version", version=f"rdn-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_training, _add_upscale, _add_eval, _add_convert, _add_export, _add_prepare, _add_doctor_and_demo):
        add(commands)
    return parser


def _add_training(commands) -> None:
    train = commands.add_parser(
        "train", help="train a model", description="Train a model. Flags given beside --preset win over it."
    )
    train.set_defaults(run=_train)
    train.add_argument("--nproc", type=int, default=1, help="ranks to start on this node, one per device")
    train.add_argument(
        "--nnodes", default="1", metavar="N|MIN:MAX", help="nodes that take part, each started with the same command"
    )
    train.add_argument(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        default=argparse.SUPPRESS,
        help="where the nodes meet: one of them, and a free port of it",
    )
    id_help = "tells runs apart that meet at one place"
    train.add_argument("--rdzv-id", metavar="NAME", default=argparse.SUPPRESS, help=id_help)
    restarts_help = (
        "how often the ranks are started anew, from the last checkpoint, when one is killed or a device fails"
    )
    train.add_argument("--max-restarts", type=int, default=0, metavar="K", help=restarts_help)
    tune = commands.add_parser(
        "tune",
        help="time the dense block's implementations here, or calibrate the loss scale",
        description="Time the dense block's implementations for a run with these flags (train's), and remember the fastest.",
        conflict_handler="resolve",
    )
    tune.set_defaults(run=_tune)
    for parser_ in (train, tune):
        parser_.add_argument("--preset", choices=tuple(PRESETS), help="settings by name", default=argparse.SUPPRESS)
        for cls in (ModelConfig, TrainConfig):
            _add_fields(parser_, cls)
    instead = "instead: choose the loss scale as --loss-scale-value auto does, and show the gradients' histogram it is chosen from"
    tune.add_argument("--loss-scale", dest="calibrate", action="store_true", default=argparse.SUPPRESS, help=instead)
    tune.add_argument(
        "--outputs-dir", default="outputs/tune", help="where --loss-scale writes loss_scale.csv and loss_scale.svg"
    )


def _add_upscale(commands) -> None:
    upscale = commands.add_parser(
        "upscale", help="make pictures larger", description="Make pictures larger with an RDN."
    )
    upscale.set_defaults(run=_upscale)
    upscale.add_argument(
        "-i",
        "--input",
        required=True,
        nargs="+",
        metavar="IN",
        help="pictures, folders of pictures, or quoted glob patterns",
    )
    upscale.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="folder to write to; for a single picture also a file"
    )
    _add_weights(upscale)
    upscale.add_argument("-s", "--scale", "--outscale", type=int, help="checked against the weights, which know it")
    upscale.add_argument(
        "-t", "--tile", type=int, help="edge of the tiles in LR pixels, 0: none (default: what suits the device)"
    )
    pad_help = (
        "LR pixels that a tile sees beyond its edge; exact: as many as the model looks at, equal to no tiles at all"
    )
    upscale.add_argument("--tile-pad", default="10", metavar="N|exact", help=pad_help)
    upscale.add_argument("--suffix", default="out", help="added to names as _SUFFIX; an empty one adds nothing")
    upscale.add_argument(
        "--ext",
        default="auto",
        choices=("auto", "png", "jpg", "webp", "tif"),
        help="format to write; auto: the picture's own",
    )
    upscale.add_argument("--fp32", action="store_true", help="compute in float32 throughout")
    upscale.add_argument(
        "--self-ensemble",
        action="store_true",
        help="mean over the eight turns and mirror images: a little better, eight times the work",
    )
    upscale.add_argument(
        "-r", "--recursive", action="store_true", help="folders with all that lies in them; OUT gets the same folders"
    )
    upscale.add_argument("--overwrite", action="store_true", help="make pictures anew that are there already")
    limit_help = "refuse pictures with more, which may be made to exhaust the memory; 0: no limit"
    upscale.add_argument("--max-pixels", type=int, default=178_956_970, metavar="N", help=limit_help)
    upscale.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")


def _add_eval(commands) -> None:
    evaluate = commands.add_parser("eval", help="PSNR and SSIM of weights over sets of pictures, bicubic beside them")
    evaluate.set_defaults(run=_eval)
    _add_weights(evaluate)
    evaluate.add_argument(
        "--eval-file", nargs="+", default=[], metavar="SET", help="evaluation h5 files, or folders of HR images"
    )
    evaluate.add_argument("--data", metavar="DIR", help="every set that lies in this folder: Set5, Set14, ...")
    evaluate.add_argument("--scale", type=int, help="checked against the weights, which know it")
    evaluate.add_argument("--self-ensemble", action="store_true", help="mean over the eight turns and mirror images")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    for name in ("json", "csv", "markdown"):
        evaluate.add_argument(f"--{name}", metavar="FILE", help=f"write the tables there as {name}, too")
    evaluate.add_argument(
        "--save-images", metavar="DIR", help="write the up-scaled pictures there, as PNG, a folder for each set"
    )
    evaluate.add_argument(
        "--figure",
        metavar="FILE.png",
        help="draw where the model is worst and best against bicubic: HR, bicubic, RDN, error",
    )


def _add_convert(commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="weights of other projects to ours, and back",
        description="Read weights of any RDN and write them anew.",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source",
        metavar="IN",
        help="weights or a checkpoint of yjn870, torchSR, Ascend, mmagic, EDSR-PyTorch, Lornatang, BasicSR or ours",
    )
    convert.add_argument(
        "target", metavar="OUT", help="the file to write, not IN: .pth or .safetensors, which also holds the metadata"
    )
    convert.add_argument(
        "--layout", default="reference", choices=("reference", "edsr"), help="names and value range to write"
    )
    convert.add_argument("--fp16", action="store_true", help="write half-precision numbers: half the size")
    metadata_help = "said of the weights in a .safetensors file, for example licence=MIT or 'training_data=DIV2K'"
    convert.add_argument("--metadata", nargs="+", default=[], metavar="KEY=VALUE", help=metadata_help)


def _add_export(commands) -> None:
    export = commands.add_parser("export", help="the model as ONNX, checked against torch")
    export.set_defaults(run=_export)
    _add_weights(export)
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write")
    export.add_argument(
        "--dynamic", action="store_true", help="batch, height and width may be anything; else they are --size"
    )
    export.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[64, 64],
        metavar=("H", "W"),
        help="LR height and width of the model's input",
    )
    export.add_argument("--opset", type=int, help="ONNX operator set (default: 13; Ascend's atc reads 11 to 18)")
    export.add_argument(
        "--fp16", action="store_true", help="weights and arithmetic in half precision; input and output stay float32"
    )


def _add_prepare(commands) -> None:
    prepare = commands.add_parser(
        "prepare", help="make an h5 file from a folder of images, or one that can be mapped from another h5 file"
    )
    prepare.set_defaults(run=_prepare)
    prepare.add_argument("--images-dir", help="folder of HR images")
    prepare.add_argument("--output-path", help="the h5 file to write")
    prepare.add_argument("--scale", type=int, default=2, choices=(2, 3, 4), help="up-scaling factor")
    prepare.add_argument(
        "--eval", action="store_true", help="whole images for evaluation instead of five half-size crops"
    )
    prepare.add_argument(
        "--yjn870-compat",
        action="store_true",
        help="resize HR to multiples of the scale, as yjn870's code does, instead of cropping",
    )
    prepare.add_argument(
        "--strict", action="store_true", help="stop at a file that cannot be read instead of skipping it"
    )
    repack_help = (
        "instead of all these: rewrite a chunked, compressed or float h5 file as the uint8 file that training maps"
    )
    prepare.add_argument("--repack", nargs=2, metavar=("OLD.h5", "NEW.h5"), help=repack_help)


def _add_doctor_and_demo(commands) -> None:
    doctor = commands.add_parser("doctor", help="what this machine has for training, and what brings the rest")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")

    demo = commands.add_parser(
        "demo", help="train a small model on photographs, compare it with bicubic and draw the result"
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--outputs-dir", default="outputs/demo", help="where data, weights and compare.png go")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--weights-file",
        metavar="WEIGHTS",
        help="weights of any RDN (default: the small x2 model that comes with rdn_fast)",
    )


def _add_fields(parser: argparse.ArgumentParser, cls) -> None:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
        shown = (
            ""
            if field.default in (None, False) or "default" in field.metadata["help"]
            else f" (default: {field.default})"
        )
        names = (field.name.replace("_", "-"), *field.metadata["aliases"])
        value = (
            {"action": "store_true"}
            if hint is bool
            else {"type": field.metadata["parse"] or kinds[0], "choices": field.metadata["choices"]}
        )
        parser.add_argument(
            *(f"--{name}" for name in names),
            dest=field.name,
            help=field.metadata["help"] + shown,
            default=argparse.SUPPRESS,
            **value,
        )


def _dashed(word: str) -> str:
    """--loss_scale_value=1 -> --loss-scale-value=1; values and other words as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _train(options: argparse.Namespace, arguments: list[str]) -> int:
    model_config, config = _settings(options)
    if options.nproc < 1:
        raise UserError(f"--nproc {options.nproc}: must be at least 1")
    if options.max_restarts < 0:
        raise UserError(f"--max-restarts {options.max_restarts}: must not be negative")
    meeting = options.nnodes, getattr(options, "rdzv_endpoint", None), getattr(options, "rdzv_id", None)
    if options.nproc > 1 or options.max_restarts or meeting != ("1", None, None):
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # torch, imported only now, warns of a peer that has gone with its C++ stack
        from rdn_fast.distributed.rendezvous import Nodes
        from rdn_fast.training.launch import launch

        arguments = _without(arguments[1:], "--nproc", "--nnodes", "--rdzv-endpoint", "--rdzv-id", "--max-restarts")
        return launch(model_config, config, options.nproc, Nodes(*meeting), options.max_restarts, arguments)
    from rdn_fast.training.run import train

    train(model_config, config)
    return 0


def _tune(options: argparse.Namespace, _) -> None:
    if hasattr(options, "calibrate"):
        from rdn_fast.commands.tune_loss_scale import show
    else:
        from rdn_fast.commands.tune import show

    show(*_settings(options))


def _settings(options: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    return settings(vars(options), getattr(options, "preset", None))


def _without(arguments: list[str], *flags: str) -> list[str]:
    """The arguments less `FLAG VALUE` and `FLAG=VALUE`."""
    kept = []
    rest = iter(arguments)
    for word in rest:
        if word in flags:
            next(rest)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept


def _upscale(options: argparse.Namespace, _) -> int:
    from rdn_fast.pictures.upscale_files import upscale_files

    return upscale_files(**_values(options))


def _eval(options: argparse.Namespace, _) -> None:
    from rdn_fast.evaluation.evaluate import evaluate

    evaluate(**_values(options))


def _convert(options: argparse.Namespace, _) -> None:
    from rdn_fast.weights.convert import convert

    convert(**_values(options))


def _export(options: argparse.Namespace, _) -> None:
    from rdn_fast.weights.onnx_export import export

    export(**_values(options))


def _values(options: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(options).items() if name != "run"}


def _prepare(options: argparse.Namespace, arguments: list[str]) -> None:
    if options.repack:
        for word in arguments:
            if word.startswith("--") and word != "--repack":
                raise UserError(f"{word}: does not go with --repack, which takes OLD.h5 and NEW.h5 alone; leave it out")
        from rdn_fast.data.repack import repack

        repack(*options.repack)
        return
    for flag, value in (("--images-dir FOLDER", options.images_dir), ("--output-path FILE.h5", options.output_path)):
        if value is None:
            raise UserError(
                f"{flag} is missing; give it, or --repack OLD.h5 NEW.h5 to rewrite a file; `rdn-fast prepare --help` lists the flags"
            )
    from rdn_fast.data.prepare import prepare

    prepare(options.images_dir, options.output_path, options.scale, options.eval, options.yjn870_compat, options.strict)


def _doctor(options: argparse.Namespace, _) -> int:
    from rdn_fast.commands.doctor import doctor

    return doctor(options.device)


def _demo(options: argparse.Namespace, _) -> None:
    from rdn_fast.commands.demo import demo

    demo(options.outputs_dir, options.device)
