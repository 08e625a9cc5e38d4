"""A file in bench/cases/ is all that a new benchmark needs."""

import pytest
from bench_rows import short

from bench import cases, report, results, run

CASE = """
import torch
from bench import tables
from bench.case import Case, Comparison, Contender, Entry, Gate

def comparison():
    def build(times):
        return Contender(lambda x: [x.sum() for _ in range(times)], lambda: (torch.rand(1000),), note=f"{times} sums")
    entries = [Entry(name, torch.float32, lambda n=n: build(n)) for name, n in (("reference", 50), ("rdn_fast", 1))]
    return Comparison("sum", 1, "1,000", entries, images=1)

CASE = Case(
    order=99,
    rows=("sum",),
    commands=("all",),
    run=lambda bench, command: bench.compare(comparison(), rounds=2, span=0.01),
    gates=(Gate("one sum / fifty sums", "sum", "vs_reference", 2, dtype="float32", shape=""),),
    block="sums",
    columns=(tables.RECIPE, tables.BATCH),
    quick=lambda device, dtypes: [comparison()],
)
"""


@pytest.fixture
def _a_file_more(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(CASE)
    monkeypatch.setattr(cases, "__path__", [*cases.__path__, str(tmp_path)])
    cases.load.cache_clear()
    yield
    cases.load.cache_clear()


@pytest.mark.usefixtures("_a_file_more")
def test_a_case_is_run_judged_and_rendered_from_its_file(out, capsys):
    assert run.main(["sums", "--device", "cpu"]) == 0
    assert "one sum / fifty sums: " in capsys.readouterr().out
    runs = results.read_all(out)
    text = short(report.render("<!-- bench:sums --><!-- /bench -->", runs, {}, "figures"))
    assert "| case | recipe | batch | when |\n| --- | --- | --- | --- |\n| sum | reference" in text
    assert "| one sum / fifty sums | 2 |" in short(report.gates_table(runs))
    assert "sums" in cases.commands()
    assert [case.rows for case in cases.of_command("all")][-1] == ("sum",)
