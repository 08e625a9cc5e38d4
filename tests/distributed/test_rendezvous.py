"""Several nodes (launchers on loopback) and restarted ranks: the bytes of an undisturbed run, and ends that say why."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from runs import ROOT, TINY, assert_same_run, cli, command, events, make_data, ranks_of
from waiting import Caller, until

from rdn_fast.cli import main
from rdn_fast.training.run_folder import claim, resumable_batch

FLAGS = (
    *TINY,
    *shlex.split("--batch-size 4 --epochs 100000 --max-steps 150 --eval-every 1000 --opt-level O0 --rdb naive"),
)
LONG = ("--max-steps", 1_000_000)
# The steps of the first ranks take so long that they are not over when a test that waits for a checkpoint kills one.
SLOW_AT_FIRST = """
import os, time
from rdn_fast.training import run
step = run.TrainingRun._train_step
def slow(*arguments):
    time.sleep(0.1)
    step(*arguments)
if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    run.TrainingRun._train_step = slow
"""
HOSTNAME = socket.gethostname()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=17)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The outputs of an undisturbed run on two ranks."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert cli("train", "--data-path", data, "--outputs-dir", outputs, *FLAGS, "--nproc", 2).returncode == 0
    return outputs


@pytest.fixture
def launcher(data, tmp_path):
    """launcher(outputs, *flags, patch="", environment=os.environ): start a process that trains into `outputs`.

    It and its ranks run the Python code `patch` first.
    """
    processes = []

    def start(outputs: Path, *flags, patch: str = "", environment=os.environ) -> subprocess.Popen:
        (tmp_path / "sitecustomize.py").write_text(patch)
        paths = [str(tmp_path), str(ROOT), environment.get("PYTHONPATH", "")]
        environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
        if patch:  # it imports torch before rdn-fast can set this
            environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        where = ("--data-path", data, "--outputs-dir", outputs)
        words = command("train", *where, *FLAGS, "--checkpoint-every", "0.05", *flags)
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)
        process.output = Caller(process.communicate)  # read at once: a full pipe would stop a long run
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.output.ended()


@pytest.fixture
def two_nodes(launcher, tmp_path):
    """two_nodes(*flags, **options): start two launchers of one rank each that meet and train into tmp_path / "out"."""

    def start(*flags, **options) -> list[subprocess.Popen]:
        flags = ("--nproc", 1, "--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", *flags)
        return [launcher(tmp_path / "out", *flags, **options) for _ in range(2)]

    return start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(pattern: str, outputs: Path, *processes: subprocess.Popen) -> None:
    """Wait until `outputs` holds a file or folder of this name while all the processes run."""
    while not list(outputs.glob(pattern)):
        for process in processes:
            assert process.poll() is None, process.output.ended().result
        time.sleep(0.01)


def wait_for_checkpoint(outputs: Path, *processes: subprocess.Popen) -> None:
    wait_for("checkpoints/step_*.pt", outputs, *processes)


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Wait for the processes; return exit code, stdout and stderr of each. No rank may be left behind."""
    ranks = [pid for process in processes for pid in ranks_of(process)]
    ended = [(*process.output.ended().result, process.returncode) for process in processes]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    return [(code, out, err) for out, err, code in ended]


def assert_steps(outputs: Path, last: int) -> None:
    """metrics.jsonl holds every step up to the last one once."""
    assert [record["step"] for record in events(outputs, "step")] == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nnodes 2", ("--nnodes 2", "--rdzv-endpoint HOST:PORT")),
        ("--nnodes 0", ("--nnodes 0", "MIN:MAX")),
        ("--nnodes 3:2 --rdzv-endpoint a:1", ("--nnodes 3:2", "MIN:MAX")),
        ("--nnodes two", ("--nnodes two",)),
        ("--nnodes 2 --rdzv-endpoint node0", ("--rdzv-endpoint node0", "HOST:PORT")),
        ("--nnodes 2 --rdzv-endpoint node0:70000", ("--rdzv-endpoint node0:70000", "HOST:PORT")),
        ("--rdzv-endpoint node0:29500", ("--rdzv-endpoint node0:29500", "--nnodes")),
        ("--rdzv-id run", ("--rdzv-id run", "--nnodes")),
        ("--max-restarts -1", ("--max-restarts -1",)),
        ("--nnodes 2 --rdzv-endpoint node0:29500 --data-path nowhere", ("nowhere", "no such")),
    ],
)
def test_wrong_flags_are_user_errors(cli, data, flags, words):
    message = cli("train", "--data-path", data, *flags.split()).user_error()
    assert all(word in message for word in words), message


def test_only_checkpoints_of_the_same_launch_are_resumed(tmp_path):
    assert resumable_batch(tmp_path, ["a"]) is None
    claim(tmp_path, ["a", "b"], 8)
    assert resumable_batch(tmp_path, ["a", "b"]) is None  # no checkpoint yet
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    assert resumable_batch(tmp_path, ["b", "c"]) == 8  # a node was replaced
    assert resumable_batch(tmp_path, ["c"]) is None
    claim(tmp_path, [], 4)  # a run without a launcher
    assert resumable_batch(tmp_path, ["a", "b"]) is resumable_batch(tmp_path, []) is None
    for text in ("", "{}", "[1]", '{"launches": 1}'):  # of another program, or truncated
        (tmp_path / ".run").write_text(text)
        assert resumable_batch(tmp_path, ["a"]) is None


@pytest.mark.slow
def test_killed_rank_is_restarted_to_the_same_bytes(launcher, data, tmp_path):
    undisturbed, outputs = tmp_path / "undisturbed", tmp_path / "out"
    assert main([str(word) for word in ("train", "--data-path", data, "--outputs-dir", undisturbed, *FLAGS)]) == 0
    shutil.copytree(undisturbed, outputs)  # an earlier run, which is complete
    process = launcher(outputs, "--max-restarts", 1, patch=SLOW_AT_FIRST)
    last_moved = max(path.name for path in undisturbed.glob("checkpoints/step_*"))
    wait_for(f"earlier-*/checkpoints/{last_moved}", outputs, process)  # what comes now is of the new run
    wait_for_checkpoint(outputs, process)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    [(code, out, err)] = ends([process])
    assert code == 0, err
    line = rf"^rank 0 \({HOSTNAME}\) was killed by signal 9; restart 1 of 1, from the last checkpoint$"
    assert re.search(line, out, re.M), out
    [resume] = events(outputs, "resume")
    assert f"resumed at step {resume['step']}, " in out
    assert_same_run(outputs, undisturbed)
    [earlier] = outputs.glob("earlier-*")
    assert_same_run(earlier, undisturbed)


@pytest.mark.slow
def test_two_nodes_are_two_ranks(two_nodes, undisturbed, tmp_path):
    codes, outs, errs = zip(*ends(two_nodes()), strict=True)
    assert codes == (0, 0), errs
    assert errs == ("", "")
    assert sum("Final Performance" in out for out in outs) == 1
    assert_same_run(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_rank_killed_on_one_node_ends_the_run_on_both(two_nodes, tmp_path):
    nodes = two_nodes(*LONG)
    wait_for_checkpoint(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[0])[0], signal.SIGKILL)
    (code, _, err), (other_code, _, other_err) = ends(nodes)
    assert (code, other_code) == (1, 1)
    killed = rf"rdn-fast: failed: rank \d \({HOSTNAME}\) was killed by signal 9; go on with --resume auto\n"
    assert re.fullmatch(killed, err), err
    lost = "lost contact with another rank, whose own message says why; go on with --resume auto"
    assert re.fullmatch(rf"rdn-fast.*: failed: {lost}\n", other_err), other_err


@pytest.mark.slow
def test_rank_killed_on_one_node_is_restarted_on_both(two_nodes, undisturbed, tmp_path):
    nodes = two_nodes("--max-restarts", 1, patch=SLOW_AT_FIRST)
    wait_for_checkpoint(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[1])[0], signal.SIGKILL)
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "was killed by signal 9; restart 1 of 1" in ended[1][1]
    assert_same_run(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_stopped_launcher_stops_both_nodes(two_nodes, tmp_path):
    nodes = two_nodes(*LONG, "--max-restarts", 3)
    wait_for_checkpoint(tmp_path / "out", *nodes)
    nodes[1].terminate()
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    printed = "".join(out for _, out, _ in ended)
    assert printed.count("saved at step ") == 1
    assert "restart" not in printed
    assert_steps(tmp_path / "out", int(printed.split("saved at step ")[1].split(";")[0]))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_hanging_rank_is_named(launcher, tmp_path, rank):
    patch = """
from datetime import timedelta
import torch.distributed as dist
from rdn_fast.distributed import elastic_agent, process_group
from rdn_fast.training import run
from torch.distributed.elastic.multiprocessing.api import PContext
poll = run.TrainingRun._poll_ranks
def shorten(self):
    poll(self)
    process_group.TIMEOUT, process_group._GRACE = 20, 2  # once all ranks have made their first step, which takes long
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=20))
run.TrainingRun._poll_ranks = shorten
PContext.close.__defaults__ = (None, 3)  # seconds from SIGTERM to SIGKILL
elastic_agent._EXIT_SECONDS = 1
"""
    outputs = tmp_path / "out"
    process = launcher(outputs, "--nproc", 2, *LONG, patch=patch)
    wait_for_checkpoint(outputs, process)
    os.kill(ranks_of(process)[rank], signal.SIGSTOP)
    [(code, _, err)] = ends([process])
    assert code == 1
    speaker = "rdn-fast [rank 1]" if rank == 0 else "rdn-fast"
    where = r"\S+" if rank == 0 else HOSTNAME  # rank 0's address, when it does not answer itself
    silent = rf"no answer for 20 s from rank {rank} \({where}\)"
    assert re.fullmatch(rf"{re.escape(speaker)}: failed: {silent}; go on with --resume auto\n", err), err


@pytest.mark.slow
def test_node_that_fails_before_the_ranks_connect(two_nodes):
    patch = """
import os
from rdn_fast import devices
from rdn_fast.distributed import elastic_agent
from rdn_fast.errors import UserError
elastic_agent._LEAVE_SECONDS = 2
def pick(*_):
    raise UserError("not here")
if os.environ.get("RANK") == "1":
    devices.pick = pick
"""
    waiting, failed = sorted(ends(two_nodes(patch=patch)))
    assert failed == (2, "", "rdn-fast [rank 1]: error: not here\n")
    code, out, err = waiting
    assert (code, out) == (1, "")
    reason = "(another node has left the run|the node where all meet has gone)"
    assert re.fullmatch(rf"rdn-fast: failed: .*{reason}.*; go on with --resume auto\n", err), err


@pytest.mark.slow
def test_rank_killed_before_the_earlier_run_is_set_aside(launcher, undisturbed, tmp_path):
    patch = """
import os, signal
from rdn_fast.training import run_folder
if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    run_folder.resumable_batch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    outputs = tmp_path / "out"
    shutil.copytree(undisturbed, outputs)
    [(code, out, err)] = ends([launcher(outputs, "--max-restarts", 1, "--batch-size", 8, patch=patch)])
    assert code == 0, err
    assert err == ""
    assert re.search(r"^rank 0 \(.*\) was killed by signal 9; restart 1 of 1", out, re.M), out
    [earlier] = outputs.glob("earlier-*")
    assert_same_run(earlier, undisturbed)
    assert [record["step"] for record in events(outputs, "start")] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [(("--lr", "1e30"), 1, "not finite"), (("--resume", "auto", "--seed", 4), 2, "seed was 123, now 4")],
)
def test_failures_that_would_recur_are_not_restarted(launcher, undisturbed, tmp_path, flags, code, words):
    outputs = tmp_path / "out"
    shutil.copytree(undisturbed, outputs)
    [(ended, out, err)] = ends([launcher(outputs, "--nproc", 2, "--max-restarts", 3, *flags)])
    assert ended == code
    assert words in err
    assert err.count("\n") == 1
    assert "restart" not in out


@pytest.mark.slow
def test_endpoint_without_nodes_or_store(launcher, tmp_path):
    patch = """
from rdn_fast.distributed import rendezvous
rendezvous.JOIN_TIMEOUT, rendezvous._ANSWER_TIMEOUT = 3, 3
"""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        expected = {
            f"127.0.0.1:{free_port()}": (1, "fewer than 2 nodes have come there within 3 s"),
            f"nowhere.invalid:{free_port()}": (1, "nobody has answered there for 3 s"),
            f"127.0.0.1:{taken.getsockname()[1]}": (2, "what listens there is no launcher of this run"),
        }
        flags = ("--nnodes", 2, "--rdzv-endpoint")
        ended = ends([launcher(tmp_path / "out", *flags, endpoint, patch=patch) for endpoint in expected])
    for (code, _, err), (endpoint, (expected_code, words)) in zip(ended, expected.items(), strict=True):
        assert code == expected_code, err
        assert re.fullmatch(rf"rdn-fast: (failed|error): --rdzv-endpoint {endpoint}: {words}.*\n", err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nodes_with_different_flags(launcher, tmp_path):
    flags = ("--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "one")
    ended = ends([launcher(tmp_path / name, *flags, "--seed", seed) for name, seed in (("a", 1), ("b", 2))])
    assert [code for code, *_ in ended] == [2, 2]
    difference = "seed is (1 for rank 0 and 2|2 for rank 0 and 1) for rank 1"
    expected = rf"rdn-fast: error: {difference}; give every node the same flags and data\n"
    assert re.fullmatch(expected, "".join(err for *_, err in ended))


@pytest.mark.slow
def test_node_that_joins_later_takes_its_share(launcher, tmp_path):
    patch = """
from datetime import timedelta
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout
# Wait 1 s for more nodes once the minimum has joined.
RendezvousTimeout._DEFAULT_TIMEOUTS["last_call"] = timedelta(seconds=1)
"""
    outputs = tmp_path / "out"
    endpoint = ("--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    flags = ("--nnodes", "1:2", *endpoint, "--batch-size", 8, *LONG)
    nodes = [launcher(outputs, *flags, patch=patch)]
    wait_for_checkpoint(outputs, *nodes)
    nodes.append(launcher(outputs, *flags, patch=patch))
    until(lambda: events(outputs, "resume") or time.sleep(0.1))
    nodes[1].terminate()
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    [start], [resume] = events(outputs, "start"), events(outputs, "resume")
    assert (start["world"], resume["world"]) == (1, 2)
    assert start["global_batch"] == resume["global_batch"] == 8
    last = max(int(step) for _, out, _ in ended for step in re.findall(r"saved at step (\d+);", out))
    assert last > resume["step"]
    assert_steps(outputs, last)


@pytest.mark.slow
def test_two_nodes_of_npus_and_a_killed_rank(two_nodes, npu_environment, tmp_path):
    nodes = two_nodes("--device", "npu", "--max-restarts", 1, environment=npu_environment)
    wait_for_checkpoint(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[1])[0], signal.SIGKILL)
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "was killed by signal 9; restart 1 of 1" in ended[1][1]
    assert events(tmp_path / "out", "resume")[0]["device"].startswith("npu:0 (simulated")
    assert_steps(tmp_path / "out", 150)
