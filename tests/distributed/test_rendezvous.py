"""Several nodes (launchers on loopback), and ranks that are started anew: the same bytes as an undisturbed run, and ends that tell what happened."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from runs import ROOT, TINY, cli, command, events, make_data

from rdn_fast.cli import main
from rdn_fast.training.run_folder import claim, resumable_batch

FLAGS = (
    *TINY,
    "--batch-size",
    4,
    "--epochs",
    100_000,
    "--max-steps",
    150,
    "--eval-every",
    1000,
    "--opt-level",
    "O0",
    "--rdb",
    "naive",
)
SAVING = ("--checkpoint-every", "0.05")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=17)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run on two ranks."""
    out = tmp_path_factory.mktemp("whole")
    assert cli("train", "--data-path", data, "--outputs-dir", out, *FLAGS, "--nproc", 2).returncode == 0
    return out


@pytest.fixture
def launcher(data, tmp_path):
    """launcher(out, *flags, patch="", environment=os.environ): a process that trains into `out`; it and its ranks first run the Python code `patch`."""
    started = []

    def start(out: Path, *flags, patch: str = "", environment=os.environ) -> subprocess.Popen:
        (tmp_path / "sitecustomize.py").write_text(patch)
        paths = [str(tmp_path), str(ROOT), environment.get("PYTHONPATH", "")]
        environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
        if patch:  # it imports torch before rdn-fast can set this
            environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        words = command("train", "--data-path", data, "--outputs-dir", out, *FLAGS, *SAVING, *flags)
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def two_nodes(launcher, tmp_path):
    """two_nodes(*flags, **options): two launchers of one rank each that meet."""

    def start(*flags, **options) -> list[subprocess.Popen]:
        flags = ("--nproc", 1, "--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", *flags)
        return [launcher(tmp_path / "out", *flags, **options) for _ in range(2)]

    return start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def saved(out: Path, *processes: subprocess.Popen) -> None:
    """Wait until the run has a checkpoint."""
    while not list(out.glob("checkpoints/step_*.pt")):
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def ranks_of(process: subprocess.Popen) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


def ends(processes: list[subprocess.Popen], seconds: float = 60) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, all within the time and with no rank left behind."""
    ranks = [pid for process in processes for pid in ranks_of(process)]
    ended = [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    return [(code, out, err) for out, err, code in ended]


def assert_same_run(out: Path, whole: Path) -> None:
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()
    assert events(out, "step") == events(whole, "step")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--nnodes", "2"), ("--nnodes 2", "--rdzv-endpoint HOST:PORT")),
        (("--nnodes", "0"), ("--nnodes 0", "MIN:MAX")),
        (("--nnodes", "3:2", "--rdzv-endpoint", "a:1"), ("--nnodes 3:2", "MIN:MAX")),
        (("--nnodes", "two"), ("--nnodes two",)),
        (("--nnodes", "2", "--rdzv-endpoint", "node0"), ("--rdzv-endpoint node0", "HOST:PORT")),
        (("--nnodes", "2", "--rdzv-endpoint", "node0:70000"), ("--rdzv-endpoint node0:70000", "HOST:PORT")),
        (("--rdzv-endpoint", "node0:29500"), ("--rdzv-endpoint node0:29500", "--nnodes")),
        (("--rdzv-id", "run"), ("--rdzv-id run", "--nnodes")),
        (("--max-restarts", "-1"), ("--max-restarts -1",)),
        (("--nnodes", "2", "--rdzv-endpoint", "node0:29500", "--data-path", "nowhere"), ("nowhere", "no such")),
    ],
)
def test_flags_that_make_no_sense(cli, data, flags, words):
    message = cli("train", "--data-path", data, *flags).user_error()
    assert all(word in message for word in words), message


def test_only_what_this_launch_has_saved_is_gone_on_with(tmp_path):
    assert resumable_batch(tmp_path, ["a"]) is None
    claim(tmp_path, ["a", "b"], 8)
    assert resumable_batch(tmp_path, ["a", "b"]) is None  # nothing to go on with
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    assert resumable_batch(tmp_path, ["b", "c"]) == 8  # a node was replaced
    assert resumable_batch(tmp_path, ["c"]) is None
    claim(tmp_path, [], 4)  # a run without a launcher
    assert resumable_batch(tmp_path, ["a", "b"]) is resumable_batch(tmp_path, []) is None
    for text in ("", "{}", "[1]", '{"launches": 1}'):  # of another program, or half of one
        (tmp_path / ".run").write_text(text)
        assert resumable_batch(tmp_path, ["a"]) is None


@pytest.mark.slow
def test_a_killed_rank_is_started_anew_and_nothing_shows(launcher, data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([str(word) for word in ("train", "--data-path", data, "--outputs-dir", whole, *FLAGS)]) == 0
    shutil.copytree(whole, out)  # an earlier run, which is over
    process = launcher(out, "--max-restarts", 1)
    while not list(out.glob("earlier-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    saved(out, process)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    [(code, told, err)] = ends([process])
    assert code == 0, err
    assert re.search(
        rf"^rank 0 \({socket.gethostname()}\) was killed by signal 9; restart 1 of 1, from the last checkpoint$",
        told,
        re.M,
    ), told
    assert [record["step"] for record in events(out, "resume")] == [
        int(told.split("resumed at step ")[1].split(",")[0])
    ]
    assert_same_run(out, whole)
    [earlier] = out.glob("earlier-*")
    assert_same_run(earlier, whole)


@pytest.mark.slow
def test_two_nodes_are_two_ranks(two_nodes, whole, tmp_path):
    codes, outs, errs = zip(*ends(two_nodes()), strict=True)
    assert codes == (0, 0), errs
    assert errs == ("", "")
    assert sum("Final Performance" in out for out in outs) == 1
    assert_same_run(tmp_path / "out", whole)


@pytest.mark.slow
def test_a_rank_killed_on_one_node_ends_the_run_on_both(two_nodes, tmp_path):
    nodes = two_nodes()
    saved(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[0])[0], signal.SIGKILL)
    (code, _, err), (other_code, _, other_err) = ends(nodes, 20)
    assert (code, other_code) == (1, 1)
    assert re.fullmatch(
        rf"rdn-fast: failed: rank \d \({socket.gethostname()}\) was killed by signal 9; go on with --resume auto\n", err
    ), err
    assert re.fullmatch(
        r"rdn-fast.*: failed: lost contact with another rank, whose own message says why; go on with --resume auto\n",
        other_err,
    ), other_err


@pytest.mark.slow
def test_a_rank_killed_on_one_node_is_started_anew_on_both(two_nodes, whole, tmp_path):
    nodes = two_nodes("--max-restarts", 1)
    saved(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[1])[0], signal.SIGKILL)
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "was killed by signal 9; restart 1 of 1" in ended[1][1]
    assert_same_run(tmp_path / "out", whole)


@pytest.mark.slow
def test_a_stopped_launcher_stops_both_nodes(two_nodes, tmp_path):
    nodes = two_nodes("--max-steps", 1_000_000, "--max-restarts", 3)
    saved(tmp_path / "out", *nodes)
    nodes[1].terminate()
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    told = "".join(out for _, out, _ in ended)
    assert told.count("saved at step ") == 1
    assert "restart" not in told
    step = int(told.split("saved at step ")[1].split(";")[0])
    assert [record["step"] for record in events(tmp_path / "out", "step")] == list(range(1, step + 1))


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(launcher, tmp_path):
    patch = """
from rdn_fast import agent, ranks
from torch.distributed.elastic.multiprocessing.api import PContext
ranks.TIMEOUT, ranks._GRACE = 3, 1
PContext.close.__defaults__, agent._PROMPT = (None, 3), 1  # seconds from SIGTERM to SIGKILL, and those in which ranks end of themselves
"""
    out = tmp_path / "out"
    process = launcher(out, "--nproc", 2, "--max-steps", 1_000_000, patch=patch)
    saved(out, process)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    [(code, _, err)] = ends([process])
    assert code == 1
    assert (
        err == f"rdn-fast: failed: no answer for 3 s from rank 1 ({socket.gethostname()}); go on with --resume auto\n"
    )


@pytest.mark.slow
def test_a_node_that_fails_before_the_ranks_are_connected(two_nodes):
    patch = """
import os
from rdn_fast import agent, device
from rdn_fast.errors import UserError
agent._PATIENCE = 2
def pick(*_):
    raise UserError("not here")
if os.environ.get("RANK") == "1":
    device.pick = pick
"""
    waiting, mistaken = sorted(ends(two_nodes(patch=patch), 30))
    assert mistaken == (2, "", "rdn-fast [rank 1]: error: not here\n")
    code, told, err = waiting
    assert (code, told) == (1, "")
    assert re.fullmatch(
        r"rdn-fast: failed: .*(another node has left the run|the node where all meet has gone).*; go on with --resume auto\n",
        err,
    ), err


@pytest.mark.slow
def test_a_rank_killed_before_the_earlier_run_is_out_of_the_way(launcher, whole, tmp_path):
    patch = """
import os, signal
from rdn_fast import train
if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    train.resumable_batch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    [(code, told, err)] = ends([launcher(out, "--max-restarts", 1, "--batch-size", 8, patch=patch)])
    assert code == 0, err
    assert err == ""
    assert re.search(r"^rank 0 \(.*\) was killed by signal 9; restart 1 of 1", told, re.M), told
    [earlier] = out.glob("earlier-*")
    assert_same_run(earlier, whole)
    assert [record["step"] for record in events(out, "start")] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [(("--lr", "1e30"), 1, "not finite"), (("--resume", "auto", "--seed", 4), 2, "seed was 123, now 4")],
)
def test_what_would_end_so_again_is_not_started_anew(launcher, whole, tmp_path, flags, code, words):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    [(ended, told, err)] = ends([launcher(out, "--nproc", 2, "--max-restarts", 3, *flags)])
    assert ended == code
    assert words in err
    assert err.count("\n") == 1
    assert "restart" not in told


@pytest.mark.slow
def test_a_place_where_nobody_comes_or_somebody_else_is(launcher, tmp_path):
    patch = "from rdn_fast import nodes; nodes.JOIN_TIMEOUT, nodes._ANSWER_TIMEOUT = 3, 3"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = f"127.0.0.1:{free_port()}", f"nowhere.invalid:{free_port()}", f"127.0.0.1:{taken.getsockname()[1]}"
        started = [launcher(tmp_path / "out", "--nnodes", 2, "--rdzv-endpoint", place, patch=patch) for place in places]
        ended = ends(started)
    words = (
        "fewer than 2 nodes have come there within 3 s",
        "nobody has answered there for 3 s",
        "what listens there is no launcher of this run",
    )
    for (code, _, err), place, said, expected in zip(ended, places, words, (1, 1, 2), strict=True):
        assert code == expected, err
        assert re.fullmatch(rf"rdn-fast: (failed|error): --rdzv-endpoint {place}: {said}.*\n", err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nodes_that_were_not_given_the_same(launcher, tmp_path):
    flags = ("--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "one")
    ended = ends([launcher(tmp_path / name, *flags, "--seed", seed) for name, seed in (("a", 1), ("b", 2))])
    assert [code for code, *_ in ended] == [2, 2]
    assert re.fullmatch(
        r"rdn-fast: error: seed is (1 for rank 0 and 2|2 for rank 0 and 1) for rank 1; give every node the same flags and data\n",
        "".join(err for *_, err in ended),
    )


@pytest.mark.slow
def test_a_node_that_comes_later_takes_its_share(launcher, tmp_path):
    patch = """
from datetime import timedelta
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout
RendezvousTimeout._DEFAULT_TIMEOUTS["last_call"] = timedelta(seconds=1)  # for the most nodes, once the least are there
"""
    out = tmp_path / "out"
    flags = (
        "--nnodes",
        "1:2",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--batch-size",
        8,
        "--max-steps",
        1_000_000,
    )
    nodes = [launcher(out, *flags, patch=patch)]
    saved(out, *nodes)
    nodes.append(launcher(out, *flags, patch=patch))
    while not events(out, "resume"):
        time.sleep(0.1)
    nodes[1].terminate()
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    [start], [resume] = events(out, "start"), events(out, "resume")
    assert (start["world"], resume["world"]) == (1, 2)
    assert start["global_batch"] == resume["global_batch"] == 8
    step = max(int(step) for _, told, _ in ended for step in re.findall(r"saved at step (\d+);", told))
    assert step > resume["step"]
    assert [record["step"] for record in events(out, "step")] == list(range(1, step + 1))


@pytest.mark.slow
def test_two_nodes_of_npus_and_a_killed_rank(two_nodes, npu_environment, tmp_path):
    nodes = two_nodes("--device", "npu", "--max-restarts", 1, environment=npu_environment)
    saved(tmp_path / "out", *nodes)
    os.kill(ranks_of(nodes[1])[0], signal.SIGKILL)
    ended = ends(nodes)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "was killed by signal 9; restart 1 of 1" in ended[1][1]
    assert events(tmp_path / "out", "resume")[0]["device"].startswith("npu:0 (simulated")
    assert [record["step"] for record in events(tmp_path / "out", "step")] == list(range(1, 151))
