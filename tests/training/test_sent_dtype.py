"""`--all-reduce fp16`: two ranks train nearly as with float32, and a resume without it says so."""

import pytest
import torch
from runs import TINY, cli, make_data, weights

FLAGS = (*TINY, "--batch-size", 4, "--eval-every", 2, "--device", "cpu", "--rdb", "naive")


@pytest.mark.slow
def test_two_ranks_that_send_float16_end_near_those_that_send_float32(tmp_path):
    data = make_data(tmp_path / "data")

    def run(folder: str, *flags: object) -> str:
        result = cli("train", *FLAGS, "--data-path", data, "--outputs-dir", tmp_path / folder, "--nproc", 2, *flags)
        assert (result.returncode, result.stderr) == (0, ""), result
        return result.stdout

    for sent in ("fp32", "fp16"):
        run(sent, "--epochs", 2, "--all-reduce", sent)
    low, exact = (torch.cat([w.flatten() for w in weights(tmp_path / sent).values()]) for sent in ("fp16", "fp32"))
    assert not torch.equal(low, exact)
    assert (low - exact).norm() < 0.01 * exact.norm()
    said = run("fp16", "--epochs", 3, "--resume", "auto")
    assert "all_reduce was fp16, now fp32: not the run that it was" in said
