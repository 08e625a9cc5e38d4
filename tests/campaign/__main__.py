"""`python -m tests.campaign`: make every trial that the folder's records do not have yet, and tell what came of all.

A trial is a pure function of its kind and its seed, as far as moments can be; failed ones are made again by the next
start. `--only KIND:SEED` repeats one alone and keeps its files. Ctrl-C and --minutes end it; the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from rdn_fast.terminal import Bar, clock
from tests.campaign import page
from tests.campaign.batch import run_batch
from tests.campaign.kinds import KINDS
from tests.campaign.records import Records


def main() -> int:
    options = _options()
    folder = Path(options.folder).resolve()
    if options.only:
        name, _, seed = options.only.partition(":")
        (record,) = run_batch(KINDS[name], folder / name, [int(seed)])
        print(f"{options.only}: {record['outcome']}\n{record['words']}".rstrip())
        return record["outcome"] == "failed"
    records = Records(folder)
    deadline = time.monotonic() + 60 * options.minutes
    with contextlib.suppress(KeyboardInterrupt):
        for name in options.kinds or KINDS:
            _run_kind(name, folder, records, deadline)
    print(page.table(records))
    if options.write:
        page.write(records)
    return bool(records.failures())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), help="which kinds of trial (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after so many minutes")
    parser.add_argument("--folder", default="outputs/campaign", help="where records and the trials' files go")
    parser.add_argument("--only", metavar="KIND:SEED", help="repeat this trial, and keep its files in the folder")
    parser.add_argument("--write", action="store_true", help=f"put the table into {page.PAGE.name}")
    return parser.parse_args()


def _run_kind(name: str, folder: Path, records: Records, deadline: float) -> None:
    kind = KINDS[name]
    if (reason := kind.needs()) is not None:
        print(f"{name}: left out, {reason}")
        return
    todo = [seed for seed in kind.seeds if not records.passed(name, seed)]
    began, done = time.monotonic(), len(kind.seeds) - len(todo)
    with Bar(name, len(kind.seeds), done) as bar:
        while todo and time.monotonic() < deadline:
            batch, todo = todo[: kind.batch], todo[kind.batch :]
            for record in run_batch(kind, folder / name, batch):
                records.add(name, record)
                bar.advance(f"{records.failed(name)} failed")
                if record["outcome"] == "failed":
                    bar.say(f"failed {name}:{record['seed']}: {record['words'].splitlines()[-1:]}")
    print(f"{name}: {records.summary(name)}, {clock(time.monotonic() - began)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
