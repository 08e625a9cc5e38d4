"""Settings as TOML: the file of --config, and the settings.toml that every run writes beside its weights."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rdn_fast.config.fields import dashed
from rdn_fast.config.model import ModelConfig
from rdn_fast.config.presets import PRESETS
from rdn_fast.config.training import TrainConfig
from rdn_fast.errors import UserError, one_line, why_no_file

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

_TABLES = {"model": ModelConfig, "train": TrainConfig}
_LARGEST = 1_000_000  # bytes of a file; beyond that it is something else
# A flag takes the place of these settings of the file, too: they would contradict it, or win over it.
_REPLACED = {
    "data_path": ("train_file", "train_dir", "train_lr_dir", "eval_file", "eval_lr_dir"),
    "train_file": ("train_dir", "train_lr_dir"),
    "train_dir": ("train_file", "train_lr_dir"),
    "eval_file": ("eval_lr_dir",),
    "device": ("device_id",),
    "lr_schedule": ("lr_milestones",),
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


class _Setting(typing.NamedTuple):
    table: str
    field: dataclasses.Field
    kinds: tuple[type, ...]  # without None


def _settings() -> dict[str, _Setting]:
    """Return the setting of every name, with underscores: fields of both configs and their aliases."""
    found = {}
    for table, cls in _TABLES.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            kinds = tuple(kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType)
            for name in (field.name, *field.metadata["aliases"]):
                found[name.replace("-", "_")] = _Setting(table, field, kinds)
    return found


def read_settings(path: str | Path, flags: Mapping[str, object]) -> dict[str, object]:
    """Return what a TOML file sets: fields from its tables [model] and [train], and "preset". `flags` win over it.

    Left out is what `flags`, fields by name, give themselves or replace. Names are those of the flags, with underscores
    or dashes. Raises UserError, whose text begins with the path, for a file that cannot be read, an unknown name and a
    value of another type. Ranges are checked by the configs.
    """
    known, found = _settings(), {}
    for key, value in _parse(path).items():
        if key == "preset":
            if not isinstance(value, str) or value not in PRESETS:
                raise UserError(f"{path}: preset {_shown(value)}: choose one of {', '.join(PRESETS)}")
            found[key] = value
        elif key in _TABLES:
            if not isinstance(value, dict):
                raise UserError(f"{path}: {key} is a table; write [{key}] on a line of its own, and its settings below")
            for name, setting in value.items():
                field, read = _read(path, key, name, setting, known)
                if field in found:
                    raise UserError(f"{path}: {name} in [{key}] is {field}, which is there already; leave out one")
                found[field] = read
        else:
            _refuse_name(path, None, key, known)
    replaced = {name for flag in flags for name in (flag, *_REPLACED.get(flag, ()))}
    settings = {name: value for name, value in found.items() if name not in replaced}
    asked = flags.get("preset")
    if asked in PRESETS and asked != found.get("preset") and PRESETS[asked].keys() <= found.keys():
        raise UserError(f"{path}: sets all that --preset {asked} would, and wins; leave out that flag, or those lines")
    return settings


@contextmanager
def naming_key(path: str | Path, names: Collection[str]) -> Iterator[None]:
    """Let a UserError about a flag say the file's key instead, if the field of that flag is one of `names`."""
    try:
        yield
    except UserError as error:
        flag, _, rest = str(error).partition(" ")
        setting = _settings().get(flag.removeprefix("--").replace("-", "_"))
        if setting is None or setting.field.name not in names:
            raise
        raise UserError(f"--config {path}: {setting.field.name} in [{setting.table}], {rest}") from None


def as_toml(
    model_config: ModelConfig, train_config: TrainConfig, preset: str | None, comments: Sequence[str] = ()
) -> str:
    """Return the text of a TOML file that read_settings() reads back to these configs.

    Left out are fields that are None, a preset that would fill one of them, and `resume` where it is "auto", which
    belongs to a start and not to a run.
    """
    lines = [f"# {comment}" for comment in comments]
    values = {**dataclasses.asdict(model_config), **dataclasses.asdict(train_config)}
    if preset is not None and all(values[name] is not None for name in PRESETS[preset]):
        lines.append(f"preset = {_written(preset)}")
    for table, config in (("model", model_config), ("train", train_config)):
        lines += ["", f"[{table}]"]
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value is not None and (field.name, value) != ("resume", "auto"):
                lines.append(_line(field.name, value))
    return "\n".join(lines) + "\n"


def _parse(path: str | Path) -> dict[str, object]:
    if (flaw := why_no_file(path)) is not None:
        raise UserError(f"{path}: {flaw}; give a TOML file, for example the settings.toml of a run")
    try:
        if os.path.getsize(path) > _LARGEST:
            raise UserError(f"{path}: is too large for settings; give a TOML file")
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or give another") from None
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise UserError(f"{path}: is not TOML ({one_line(error)}); mend that place") from None


def _read(path: str | Path, table: str, key: str, value: object, known: dict[str, _Setting]) -> tuple[str, object]:
    """Return the name of the field that the key sets, and its value."""
    setting = known.get(key.replace("-", "_"))
    if setting is None or setting.table != table:
        _refuse_name(path, table, key, known)
    field, kinds = setting.field, setting.kinds
    where = f"{path}: {key} in [{table}], {_shown(value)}"
    if float in kinds and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise UserError(f"{where}: is too large; give a smaller number") from None
    if type(value) not in kinds:  # bool is no number here
        example = f', as "{",".join(map(str, value))}"' if isinstance(value, list) and kinds == (str,) else ""
        raise UserError(f"{where}: give {' or '.join(_KINDS.get(kind, kind.__name__) for kind in kinds)}{example}")
    choices, parse = field.metadata["choices"], field.metadata["parse"]
    if choices is not None and value not in choices:
        raise UserError(f"{where}: choose one of {', '.join(map(str, choices))}")
    if parse is not None and isinstance(value, str):
        try:
            value = parse(value)
        except UserError as error:
            raise UserError(f"{where}: {str(error).partition(': ')[2]}") from None
    return field.name, value


def _refuse_name(path: str | Path, table: str | None, key: str, known: dict[str, _Setting]) -> typing.NoReturn:
    name = key.replace("-", "_")
    where = f"{path}: {_shown(key).strip(chr(34))}{'' if table is None else f' in [{table}]'}"
    if name in known:
        raise UserError(f"{where}: belongs in [{known[name].table}]; move it there")
    nearest = difflib.get_close_matches(name, [*known, "preset", *_TABLES], n=1, cutoff=0.6)
    hint = "".join(f" (did you mean {one}?)" for one in nearest)
    raise UserError(f"{where}: no such setting{hint}; they are called as the flags of `rdn-fast train --help`")


def _shown(value: object) -> str:
    """Return a value of a TOML file as one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _line(name: str, value: object) -> str:
    written = f"{name} = {_written(value)}"
    try:
        written.encode()
    except UnicodeEncodeError:  # a path whose bytes are not UTF-8: TOML has no way to write it
        written = f"# {written.encode(errors='backslashreplace').decode()}: not UTF-8; give --{dashed(name)}"
    return written


def _written(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return repr(value)  # shortest that reads back the same; inf and nan are TOML's words, too
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped. So are true, false and whole numbers.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
