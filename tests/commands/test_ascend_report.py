"""`rdn-fast doctor --ascend-report`: each part costs only itself, and the file names neither user nor host."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT, assert_user_error, command, make_data, ranks_of
from runs import TINY as TINY_RUN
from runs import cli as process
from waiting import PATIENCE, until

from rdn_fast import ascend
from rdn_fast.commands import ascend_page, ascend_parts, ascend_report
from rdn_fast.commands.ascend_page import anonymous
from rdn_fast.config import ModelConfig
from rdn_fast.devices import npu_kernels, npu_profile
from rdn_fast.errors import Terminated, UserError
from rdn_fast.rdb import IMPLS

MODEL = asdict(ModelConfig(num_features=16, growth_rate=16, num_blocks=1, num_layers=1))
TINY = {"model_config": MODEL, "batch": 2, "patch": 8}
MODES = ("format+jit", "format", "jit", "base")
TITLES = ["versions", "card", "compiler and library", "compiling", "implementations and self-test"]
TITLES += ["timings in mode default", "training step and profile, tiny", *(f"timings in mode {mode}" for mode in MODES)]

# Stands for `python -m rdn_fast.commands.ascend_parts PART ARGUMENTS FILE`, the words $2 to $5.
PART = """#!/bin/sh
echo "$3 $4" >> "$LOG"
case "$3" in
card) echo '{"device": "npu:0", "chip": "none"}' > "$5" ;;
implementations) echo '{"impl": "sliced", "for": "training", "runs": true}' > "$5" ;;
timings) echo '{"impl": "sliced", "shape": "tiny", "for": "training", "ms": 2.5}' > "$5" ;;
*) echo '{"what": "ever"}' > "$5" ;;
esac
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(ascend_report, "SHAPES", {"tiny": TINY})
    monkeypatch.setenv(ascend.AUTOLOAD, "0")  # doctor sets it


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Return parts(text=""), which lets parts run a shell script that may end with `text`. It returns the log."""

    def use(text: str = "") -> Path:
        script = tmp_path / "part"
        script.write_text(PART + text)
        script.chmod(0o755)
        monkeypatch.setattr(ascend_report, "sys", SimpleNamespace(executable=str(script)))
        monkeypatch.setenv("LOG", str(tmp_path / "log"))
        return tmp_path / "log"

    return use


def results(text: str) -> dict[str, str]:
    """Return the results by part, as the report's first table tells them."""
    return dict(re.findall(r"^\| (.*?) \| \d+ \| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE))


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.partition("```json\n")[2].splitlines() if line != "```"]


def test_runs_all_parts_and_writes_tables_and_rows(cli, parts, tmp_path):
    log, file = parts(), tmp_path / "report.md"
    ended = cli("doctor", "--ascend-report", file)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"written to {file}: look through it, and attach it to an issue"
    text = file.read_text()
    assert results(text) == dict.fromkeys(TITLES, "done")
    assert " complete." in text
    assert [row["part"] for row in rows(text)] == TITLES
    assert "| impl | shape | for | ms |\n| --- | --- | --- | --- |\n| sliced | tiny | training | 2.5 |" in text
    asked = [(name, json.loads(arguments)) for name, _, arguments in map(partitioned, log.read_text().splitlines())]
    timings = [arguments for name, arguments in asked if name == "timings"]
    assert [one["mode"] for one in timings] == ["", *MODES]
    assert all(one["impls"] == {"training": ["sliced"]} and one["shapes"] == {"tiny": TINY} for one in timings)
    assert dict(asked)["step"] == {"device": "npu:0", **TINY, "impl": "sliced"}


def partitioned(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


def test_a_part_that_fails_costs_only_itself(cli, parts, tmp_path):
    parts("case $3 in step) echo Traceback >&2; echo 'no | profiler' >&2; exit 1 ;; library) kill -9 $$ ;; esac")
    assert cli("doctor", "--ascend-report", tmp_path / "report.md").code == 0
    failed = {
        "training step and profile, tiny": r"failed: no \| profiler",
        "compiler and library": "failed: its process was killed by signal 9",
    }
    text = (tmp_path / "report.md").read_text()
    assert results(text) == dict.fromkeys(TITLES, "done") | failed
    assert "compiler and library" in [row["part"] for row in rows(text)]  # what it had found before


def test_a_part_that_does_not_end_is_cut_with_what_it_has_started(cli, parts, tmp_path, monkeypatch):
    def plan(*arguments):
        made = right(*arguments)
        for part in made.parts:
            part.limit = 1 if part.function == "library" else 300
        return made

    right = ascend_report._Plan
    monkeypatch.setattr(ascend_report, "_Plan", plan)
    parts(f"if [ $3 = library ]; then sleep 600 & echo $! > {tmp_path}/pid; wait; fi")
    began = time.monotonic()
    assert cli("doctor", "--ascend-report", tmp_path / "report.md").code == 0
    assert time.monotonic() - began < 300
    found = results((tmp_path / "report.md").read_text())
    assert found.pop("compiler and library") == "cut after 1 s"
    assert {*found.values()} == {"done"}
    assert not runs(int((tmp_path / "pid").read_text()))


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_no_part_begins_after_the_ten_minutes(cli, parts, tmp_path, monkeypatch):
    log = parts()
    monkeypatch.setattr(ascend_report, "TOTAL", 0.0)
    assert cli("doctor", "--ascend-report", tmp_path / "report.md").code == 1
    assert "versions | 0 | not run: the 0 minutes were over" in (tmp_path / "report.md").read_text()
    assert not log.exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_what_was_found_before_it_is_stopped_is_kept(cli, parts, tmp_path, monkeypatch, error, code):
    class Popen(subprocess.Popen):
        def poll(self):
            if "step" in self.args:
                self.wait(PATIENCE)  # its row is there
                raise error
            return super().poll()

    parts()
    monkeypatch.setattr(ascend_report.subprocess, "Popen", Popen)
    monkeypatch.setattr(ascend_report, "_end", lambda _: None)
    assert cli("doctor", "--ascend-report", tmp_path / "report.md").code == code
    text = (tmp_path / "report.md").read_text()
    assert [*results(text).values()] == ["done"] * 6 + ["stopped"] + ["not run"] * 4
    assert [row["part"] for row in rows(text)] == TITLES[:7]
    assert f"stopped by {'SIGTERM' if code == 143 else 'Ctrl-C'}" in text
    assert [file.name for file in tmp_path.glob(".report*")] == []


def test_without_a_card_the_rest_is_told(cli, parts, tmp_path):
    parts("[ $3 = card ] && rm $5 && echo 'CANN is missing' >&2 && exit 1 || exit 0")
    ended = cli("doctor", "--ascend-report", tmp_path / "report.md")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[-1] == "no card: CANN is missing"
    found = results((tmp_path / "report.md").read_text())
    assert found == {
        title: "failed: CANN is missing" if title == "card" else "done" if i < 4 else "not run: no card"
        for i, title in enumerate(TITLES)
    }


def test_an_earlier_report_is_replaced_and_other_files_are_not(cli, parts, tmp_path):
    log, file = parts(), tmp_path / "report.md"
    file.write_text("notes")
    for target, words in ((file, "is not a report of rdn-fast doctor"), (tmp_path, "is a folder")):
        assert words in cli("doctor", "--ascend-report", target).user_error()
    assert "cannot be written" in cli("doctor", "--ascend-report", tmp_path / "no/report.md").user_error()
    assert file.read_text() == "notes"
    assert not log.exists()
    file.write_text(ascend_page.page([], 0, "complete"))
    ended = cli("doctor", "--ascend-report", file)
    assert ended.out.startswith(f"note: {file} is an earlier report, which this one replaces after its first part")
    assert len(rows(file.read_text())) == len(TITLES)


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "tpu"])
def test_another_device_is_a_mistake(cli, parts, tmp_path, device):
    parts()
    assert (
        f"--device {device}: "
        in cli("doctor", "--device", device, "--ascend-report", tmp_path / "report.md").user_error()
    )
    assert not (tmp_path / "report.md").exists()


@pytest.fixture
def private(monkeypatch):
    for name, value in {"HOME": "/data/home/ann", "USER": "ann", "LOGNAME": "ann", "HOSTNAME": "box7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ascend_page.platform, "node", lambda: "box7.lab.example")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/data/home/ann/.cache/x", "~/.cache/x"),
        ("/data/home/anna/x", ".../x"),
        ("ann@box7.lab.example: ann", "USER@HOST: USER"),
        ("box7", "HOST"),
        ("an annotation of box70", "an annotation of box70"),
        ("3.11.7, /scratch/secret/bin/python, Linux", "3.11.7, .../python, Linux"),
        ("in /usr/local/Ascend/toolkit (ASCEND_TOOLKIT_HOME)", "in /usr/local/Ascend/toolkit (ASCEND_TOOLKIT_HOME)"),
        ("https://gitee.com/ascend/apex 3/4 910B1/910B2", "https://gitee.com/ascend/apex 3/4 910B1/910B2"),
    ],
)
def test_names_of_user_host_and_folders_are_taken_out(private, text, told):
    assert anonymous(text) == told
    page = ascend_page.page(
        [SimpleNamespace(title="x", function="card", state=text, seconds=1, rows=[{"a": text}])], 1, ""
    )
    assert "/ann" not in page
    assert rows(page) == [{"part": "x", "a": told}]


def test_cells_keep_a_table_whole():
    part = SimpleNamespace(title="x", function="card", state="done", seconds=1, rows=[{"a": "1|2\n\x1b3", "b": True}])
    assert r"| 1\|2<br>\x1b3 | yes |" in ascend_page.page([part], 1, "").splitlines()


def test_timings_and_implementations_have_a_row_for_each(monkeypatch):
    monkeypatch.setattr(ascend_parts, "PICTURE", 8)
    found = list(ascend_parts.implementations("cpu", **TINY))
    assert [(row["impl"], row["for"]) for row in found] == [(n, use) for use in ("training", "forward") for n in IMPLS]
    assert next(row["reason"] for row in found if row["impl"] == "npu_conv") == "runs on npu only"
    timed = list(ascend_parts.timings("cpu", "", {"training": ["naive", "sliced"]}, {"tiny": TINY}))
    assert [(row["impl"], row["for"], row["state"]) for row in timed] == [
        ("naive", "training", "timed"),
        ("sliced", "training", "timed"),
    ]
    assert all(0 < row["ms"] < 60_000 and row["input"] == "2x16x8x8" for row in timed)


def test_an_impl_that_fails_is_told_and_the_next_one_is_timed(monkeypatch):
    monkeypatch.setattr(ascend_parts, "why_not", lambda name, _: "fails: oh" if name == "naive" else None)
    timed = list(ascend_parts.timings("cpu", "", {"training": ["naive", "sliced"]}, {"tiny": TINY}))
    assert [row["state"] for row in timed] == ["fails: oh", "timed"]


def test_no_other_impl_is_tried_while_one_is_timed(monkeypatch):
    def tried():
        raise AssertionError

    monkeypatch.setattr(IMPLS["winograd"].module, "missing", tried)
    assert list(ascend_parts.timings("cpu", "", {"training": ["naive"]}, {"tiny": TINY}))


def test_the_step_is_timed_and_its_profile_is_sorted(monkeypatch):
    table = [{"OP Type": str(us), "Core Type": "AIC", "Count": "1", "Total Time(us)": str(us)} for us in (1.0, 30, 2)]
    monkeypatch.setattr(npu_profile, "operators", lambda run, _: run() and table)
    whole, *operators = ascend_parts.step("cpu", "naive", **TINY)
    assert whole["patches/s"] > 0
    assert [row["operator"] for row in operators] == ["30", "2", "1.0"]


def test_without_the_compiler_compiling_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for part in (ascend_parts.compilation(None, {"tiny": TINY}), ascend_parts.library(None)):
        with pytest.raises(UserError, match="needs CANN's bishengir-compile, which is not in PATH"):
            list(part)


COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
cat > "$(dirname $out)/module.hivm.opt.mlir" < /dev/null
%s
"""


@pytest.mark.parametrize(
    ("ending", "hivmc", "state"),
    [
        ("echo code > $out.o", True, "compiled"),
        ("echo 'error: no' ", True, "planned, but hivmc fails: error: no"),
        ("echo 'error: no'", False, "planned, but hivmc, which makes machine code, is not in PATH: error: no"),
        ("rm $(dirname $out)/module*; echo 'error: no'", True, "not planned: error: no"),
    ],
)
def test_each_kernel_is_compiled_without_a_card(monkeypatch, tmp_path, ending, hivmc, state):
    for name, text in {"bishengir-compile": COMPILER % ending, **({"hivmc": ""} if hivmc else {})}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = list(ascend_parts.compilation(None, {"tiny": TINY}))
    assert [(row["dtype"], row["kernel"]) for row in found] == [
        (dtype, kernel)
        for dtype in ("float16", "bfloat16")
        for kernel in ("layer", "fusion", "gradient", "input_gradient", "weight_gradient")
    ]
    assert {row["state"] for row in found} == {state}
    assert {row["by"] for row in found} == {"bishengir-compile for Ascend910B2"}


def test_on_a_card_kernels_are_compiled_as_the_first_launch_would(monkeypatch):
    compiled = []
    toolchain = npu_kernels.Toolchain()
    vars(toolchain)["missing"] = None
    monkeypatch.setattr(ascend_parts.npu_kernels, "toolchain", toolchain)
    monkeypatch.setattr("rdn_fast.rdb.npu_conv.toolchain", toolchain)
    monkeypatch.setattr(npu_kernels, "compile_kernel", lambda text, arguments: compiled.append((text, arguments)))
    found = list(ascend_parts.compilation("cpu", {"tiny": TINY}))
    assert {(row["by"], row["state"]) for row in found} == {("triton-ascend", "compiled")}
    assert len(compiled) == len(found) == 10
    for text, arguments in compiled:
        declared = re.search(r"%arg1: memref<\?xi8>, (.*),$", text, re.MULTILINE)[1].split(", ")
        kinds = dict(re.findall(r"(!memory|!floats) = memref<\?x(\w+)>", text))
        types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
        for argument, words in zip(arguments, declared, strict=True):
            kind = words.split()[1]
            assert argument == 0 if kind == "i32" else argument.dtype == types[kinds[kind]]


def test_a_part_writes_each_row_at_once(tmp_path, monkeypatch):
    def some(count):
        yield {"row": 0}
        assert json.loads((tmp_path / "rows").read_text()) == {"row": 0}
        raise UserError("oh")

    some.__name__ = "card"
    monkeypatch.setattr(ascend_parts, "card", some)
    with pytest.raises(UserError, match="oh"):
        ascend_parts.main("card", '{"count": 1}', str(tmp_path / "rows"))


@pytest.mark.slow
def test_on_this_machine_without_a_card(tmp_path):
    ended = process("doctor", "--ascend-report", tmp_path / "report.md", env={"PATH": os.environ["PATH"]})
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "no card: torch_npu is not installed; pip install torch-npu==" in ended.stdout
    text = (tmp_path / "report.md").read_text()
    assert results(text)["versions"] == "done"
    assert torch.__version__ in next(row["found"] for row in rows(text) if row["what"] == "torch")
    assert str(Path.home()) + "/" not in text


@pytest.mark.slow
def test_on_the_simulated_npu(npu_environment, monkeypatch, cli, tmp_path):
    for name, value in npu_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_NPU_REFUSES_JIT", "1")
    monkeypatch.setattr(ascend_report, "SHAPES", {"tiny": TINY})
    ended = cli("doctor", "--ascend-report", tmp_path / "report.md", "--device", "npu:1")
    assert (ended.code, ended.err) == (0, "")
    text = (tmp_path / "report.md").read_text()
    found = results(text)
    for mode in ("jit", "format+jit"):
        assert found.pop(f"timings in mode {mode}").startswith(f"failed: npu:1 refuses mode {mode} (set_compile_mode: ")
    compiling = {title: found.pop(title) for title in ("compiler and library", "compiling")}
    assert all(state.startswith(("done", "failed: needs CANN's bishengir-compile")) for state in compiling.values())
    assert {*found.values()} == {"done"}
    told = rows(text)
    refused = [row for row in told if row.get("impl") == "npu_conv" and row["part"].startswith("implementations")]
    assert [row["for"] for row in refused] == ["training", "forward"]
    for row in refused:
        assert not row["runs"]
        assert row["reason"].startswith("runs on Ascend A2 (910B1 to B4) and A3 cards only: the compiler has no target")
        assert "\n" not in row["reason"]
    timed = {(row["mode"], row["for"], row["impl"]) for row in told if row.get("state") == "timed"}
    uses = ("training", "forward")
    impls = ("naive", "summed", "sliced")
    assert timed == {(m, u, i) for m in ("default", "format", "base") for u in uses for i in impls}
    assert any(row.get("core") == "simulated" for row in told)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_file_and_no_process(tmp_path, number, code):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    file = tmp_path / "report.md"
    program = subprocess.Popen(
        command("doctor", "--ascend-report", file),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "versions: done" not in (line := program.stdout.readline()):  # lines of progress, on a slow machine
        assert line, program.stderr.read()
    until(lambda: ranks_of(program))  # the next part has begun
    children = ranks_of(program)
    program.send_signal(number)
    out, err = program.communicate(timeout=PATIENCE)
    assert program.returncode == code, (out, err)
    assert err.strip() == f"rdn-fast: stopped by {signal.Signals(number).name}"
    assert "stopped by" in file.read_text()
    assert not any(map(runs, children))
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.slow
def test_the_block_for_a_card_is_refused_on_the_simulated_npu_and_others_run(npu_environment, tmp_path):
    flags = ("train", "--data-path", make_data(tmp_path / "data"), "--outputs-dir", tmp_path / "out", *TINY_RUN)
    flags += ("--opt-level", "O1", "--device", "npu", "--max-steps", 1)
    reason = "--rdb npu_conv runs on Ascend A2 (910B1 to B4) and A3 cards only: the compiler has no target"
    ended = process(*flags, "--rdb", "npu_conv", env=npu_environment)
    assert_user_error(ended, reason, "on npu in float16 can run: naive, summed, sliced")
    ended = process(*flags, "--rdb", "sliced", env=npu_environment)
    assert (ended.returncode, ended.stderr) == (0, "")
