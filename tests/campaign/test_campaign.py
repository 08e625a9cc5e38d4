"""A few trials of every kind with new seeds, and how the campaign counts crashes, hangs and restarts."""

import secrets

import pytest

from tests.campaign import page
from tests.campaign.batch import run_batch
from tests.campaign.kinds import KINDS
from tests.campaign.records import Records
from tests.campaign.trial import Kind

FEW = {"h5": 60, "weights": 60, "dtypes": 60, "full": 5, "file": 5, "clock": 2}  # of other kinds one
ELSEWHERE = {"stopped-rank"}  # tests/distributed/test_rendezvous.py: test_hanging_rank_is_named


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ELSEWHERE])
def test_a_few_trials_of_every_kind(name, tmp_path):
    kind = KINDS[name]
    if (reason := kind.needs()) is not None:
        pytest.skip(reason)
    first = secrets.randbelow(2**31)
    seeds = [first + i if kind.drawn else (first + i) % len(kind.seeds) for i in range(FEW.get(name, 1))]
    for record in run_batch(kind, tmp_path, seeds, short=True):
        print(f"to repeat: python -m tests.campaign --only {name}:{record['seed']}")
        assert record["outcome"] != "failed", record["words"]


MADE_UP = """
import os, signal
from tests.campaign import kinds
from tests.campaign.trial import Kind

def run(made, seed, folder):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    while seed == 2:
        pass
    if seed == 3:
        raise ValueError("a bug")
    if seed == 4:
        made.extend(bytes(600 << 20))
    return "read"

kinds.KINDS["made-up"] = Kind("made-up", "", 7, run, lambda folder: bytearray(), cpu_seconds=4, bounded=True)
"""


def test_a_crash_a_hang_a_traceback_and_much_memory_are_failures_of_their_trials(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kind = Kind("made-up", "", 7, lambda *_: "", batch=7)
    records = [*run_batch(kind, tmp_path, range(7))]
    assert [record["seed"] for record in records] == [*range(7)]
    words = [record["words"].rstrip().splitlines()[-1] if record["words"] else "" for record in records]
    assert words[1:4] == ["killed by SIGSEGV", "hangs: its time on the processor was over", "ValueError: a bug"]
    assert words[4].startswith("took ")
    assert [record["outcome"] for record in records] == ["read", *["failed"] * 4, "read", "read"]


def test_records_go_on_where_they_were_cut_and_count_what_was_mended(tmp_path):
    for outcomes in (("read", "failed", "failed"), (None, "read", "failed")):
        records = Records(tmp_path)
        for seed, outcome in enumerate(outcomes):
            if outcome:
                records.add("h5", {"seed": seed, "outcome": outcome, "words": "", "seconds": 1.0})
        with (tmp_path / "trials.jsonl").open("a") as file:
            file.write('{"kind": "h5", "seed": 9, "outc')  # killed while it wrote
    records = Records(tmp_path)
    assert [records.passed("h5", seed) for seed in (0, 1, 2, 9)] == [True, True, False, False]
    row = next(line for line in page.table(records).splitlines() if "`h5`" in line)
    assert [cell.strip() for cell in row.split("|")[3:7]] == ["3 of 10,000", "2 read", "**1**", "1"]
