"""Errors of a device are told from those of a collective on it."""

import pytest
import torch

from rdn_fast import devices

ACL = "synchronize:NPUStream.cpp:361 NPU function error: aclrtSynchronizeStream, error code is 507"
FAULTS = (
    "CUDA error: an illegal memory access was encountered",
    "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error, NCCL version 2.27",
    f"{ACL}011\n[ERROR] ERR00100 PTA call acl api failed",
    "ACL stream synchronize failed, error code:507018",
)
OTHERS = (
    f"{ACL}048\nEI0002: The wait of a Notify register times out. tag[AllReduce_group_name_7]",
    "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error, connection closed by remote peer",
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE)",
    "HCCL function error: HcclAllReduce, error code is 9",
    "Connection closed by peer [127.0.0.1]:40171",
)


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_of_the_device(text):
    assert devices.is_device_fault(RuntimeError(text))


@pytest.mark.parametrize("text", OTHERS)
def test_what_another_rank_may_have_caused(text):
    assert not devices.is_device_fault(RuntimeError(text))


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch has no type for them yet")
def test_torch_has_a_type_for_them():
    assert devices.is_device_fault(torch.AcceleratorError("of an unknown text"))
