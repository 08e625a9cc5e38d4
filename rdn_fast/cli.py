"""The command line `rdn-fast COMMAND`: parses the flags, runs the command, turns errors into exit codes.

Dashes and underscores are the same in a flag's name. A user's mistake is one line on stderr and exit code 2.
torch is imported by the commands that need it: --help does not wait for it.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import NoReturn, TextIO

from rdn_fast import ascend
from rdn_fast.errors import Failure, Stopped, Terminated, UserError, naming_flag
from rdn_fast.flags import make_parser, with_dashes
from rdn_fast.flags.settings import make_configs_of, of_ranks


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 (failed), 2 (the user's mistake), 128 + signal number (stopped)."""
    arguments = with_dashes(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = (_for_any_text_and_reader(stream) for stream in (sys.stdout, sys.stderr))
    warnings.filterwarnings("ignore", module="PIL")  # Pillow's about odd files; those that cannot be read are named
    # torch_npu is imported when a device is picked, where a failure can be reported in one line.
    os.environ.setdefault(ascend.AUTOLOAD, "0")
    try:
        options = make_parser().parse_args(arguments)
        with _terminable():
            return _COMMANDS[options.command](options, arguments) or 0
    except UserError as error:
        return _report(f"error: {error}", 2)
    except Failure as error:
        return _report(f"failed: {error}", error.code)
    except RuntimeError as error:
        if (failure := ascend.autoload_failure(error)) is not None:
            return _report(f"error: {failure}", 2)
        from rdn_fast.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _report(f"failed: out of memory; give {_less_memory(options.command)}", 1)
    except MemoryError:
        return _report(f"failed: out of memory; give {_less_memory(options.command)}", 1)
    except OSError as error:
        if (flag := _flag_of_path(error.filename, options)) is None:
            raise
        return _report(f"error: {flag}{error.filename}: {error.strerror}; mend that, or give another", 2)
    except Stopped as stopped:
        return 128 + stopped.number
    except KeyboardInterrupt as error:
        stopped = Stopped(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        return _report(str(stopped), 128 + stopped.number)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that temporary files are removed.

    Not on a rank: its launcher understands the signal itself. What a caller of main() does on SIGTERM stays.
    """
    ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and "RANK" not in os.environ
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Pipe(io.FileIO):
    """A stream whose reader may go (`rdn-fast eval ... | head -1`): the rest of the text is dropped, not the work."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def _for_any_text_and_reader(stream: TextIO | None) -> TextIO | None:
    """Return the stream so that names of any bytes can be written and a reader that has gone is no error."""
    if not isinstance(stream, io.TextIOWrapper):  # closed, or a test's
        return stream
    stream.reconfigure(errors="backslashreplace")
    raw = getattr(stream.buffer, "raw", stream.buffer)  # PYTHONUNBUFFERED: no buffer
    if type(raw) is not io.FileIO or not stat.S_ISFIFO(os.fstat(raw.fileno()).st_mode):
        return stream
    stream.flush()
    pipe = _Pipe(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        pipe if raw is stream.buffer else io.BufferedWriter(pipe),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _report(words: str, code: int) -> int:
    """Write a line to stderr and return the exit code."""
    rank = os.environ.get("RANK", "0")
    program = "rdn-fast" if rank == "0" else f"rdn-fast [rank {rank}]"
    from rdn_fast.terminal import printable  # rich takes a while, which --help does not wait for

    sys.stderr.write(f"{program}: {printable(words)}\n")  # one write: ranks share stderr
    return code


def _flag_of_path(path: object, options: argparse.Namespace) -> str | None:
    """Return the flag, with a space, that gave this path or a folder above it; "" for an argument without a flag.

    None when the path is not the user's.
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    found = os.path.abspath(path)
    for name, values in vars(options).items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str) and f"{found}{os.sep}".startswith(f"{os.path.abspath(value)}{os.sep}"):
                return "" if name in ("source", "target", "sr", "hr") else f"--{name.replace('_', '-')} "
    return None


def _less_memory(command: str) -> str:
    if command == "train":
        on = "half the --batch-size with twice the --accumulate, or --data-mode mmap (a run goes on with --resume auto)"
        return f"{on}; for a new run also a smaller --patch-size or model"
    if command == "tune":
        return "a smaller --batch-size, --patch-size or model"
    return "a smaller --tile, --size or image, or --device cpu"


def _train(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.nproc < 1:
        raise UserError(f"--nproc {options.nproc}: must be at least 1")
    if options.max_restarts < 0:
        raise UserError(f"--max-restarts {options.max_restarts}: must not be negative")
    nodes = options.nnodes, getattr(options, "rdzv_endpoint", None), getattr(options, "rdzv_id", None)
    if options.nproc > 1 or options.max_restarts or nodes != ("1", None, None):
        # torch, imported only now, warns of a peer that has gone with its C++ stack.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        model_config, train_config = make_configs_of(options)
        from rdn_fast.distributed.rendezvous import Nodes
        from rdn_fast.training.launch import launch

        with of_ranks(arguments[1:], getattr(options, "config", None)) as theirs:
            return launch(model_config, train_config, options.nproc, Nodes(*nodes), options.max_restarts, theirs)
    model_config, train_config = make_configs_of(options)
    from rdn_fast.training.run import train

    train(model_config, train_config, getattr(options, "preset", None))
    return 0


def _tune(options: argparse.Namespace, _) -> None:
    if hasattr(options, "calibrate"):
        from rdn_fast.commands.tune_loss_scale import tune_loss_scale as command
    else:
        from rdn_fast.commands.tune import tune as command

    command(*make_configs_of(options))


def _prepare(options: argparse.Namespace, arguments: list[str]) -> None:
    if options.repack:
        for word in arguments:
            if word.startswith("--") and word != "--repack":
                raise UserError(f"{word}: does not go with --repack, which takes OLD.h5 and NEW.h5 alone; leave it out")
        from rdn_fast.data.repack import repack

        with naming_flag("--repack"):
            repack(*options.repack)
        return
    for flag, value in (("--images-dir FOLDER", options.images_dir), ("--output-path FILE.h5", options.output_path)):
        if value is None:
            raise UserError(
                f"{flag} is missing; give it, or --repack OLD.h5 NEW.h5 to rewrite a file; "
                "`rdn-fast prepare --help` lists the flags"
            )
    from rdn_fast.data.degradation import Degradation
    from rdn_fast.data.prepare import prepare

    folder, file, lr_dir = options.images_dir, options.output_path, options.lr_dir
    for flag in ("bicubic", "degradation"):
        if lr_dir is not None and (value := getattr(options, flag)) is not None:
            raise UserError(
                f"--{flag} {value}: LR pictures of --lr-dir are taken as they are; leave one of the two out"
            )
    degradation = Degradation.of_flags(options.bicubic, options.degradation)
    of_lr = naming_flag("--lr-dir", lr_dir) if lr_dir is not None else nullcontext()
    with naming_flag("--images-dir", folder), naming_flag("--output-path", file), of_lr:
        prepare(
            folder,
            file,
            options.scale,
            options.eval,
            options.yjn870_compat,
            options.strict,
            options.recursive,
            degradation=degradation,
            lr_dir=lr_dir,
            tile=options.tiles,
            sizes=options.sizes,
            unseen=options.unseen or (),
        )


def _call(module: str, function: str, options: argparse.Namespace, _) -> int:
    """Import the module and call its function with the flags as keyword arguments. Return the exit code."""
    flags = {name: value for name, value in vars(options).items() if name != "command"}
    result = getattr(import_module(module), function)(**flags)
    return result if isinstance(result, int) else 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int | None]] = {
    "train": _train,
    "tune": _tune,
    "upscale": partial(_call, "rdn_fast.pictures.upscale_files", "upscale_files"),
    "eval": partial(_call, "rdn_fast.evaluation.evaluate", "evaluate"),
    "metrics": partial(_call, "rdn_fast.evaluation.score_folders", "score_folders"),
    "convert": partial(_call, "rdn_fast.weights.convert", "convert"),
    "export": partial(_call, "rdn_fast.weights.onnx_export", "export"),
    "models": partial(_call, "rdn_fast.commands.models", "models"),
    "prepare": _prepare,
    "doctor": partial(_call, "rdn_fast.commands.doctor", "doctor"),
    "demo": partial(_call, "rdn_fast.commands.demo", "demo"),
    "report": partial(_call, "rdn_fast.commands.report", "report"),
}
