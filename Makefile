# PY: the python to build on; a torch that it has is used as it is. TORCH: what to install when it has none.
PY ?= python3
TORCH ?= torch==2.13.0
DATA ?= data
NPROC ?= 1

bin := .venv/bin
# A virtual environment's torch is seen by way of a .pth file.
where := import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)
site := import sysconfig; print(sysconfig.get_path("purelib"))
ready := .venv/ready

.PHONY: setup setup-ascend setup-nvrtc demo test test-machines test-slow lint train-full bench-1p bench-8p bench-upscale bench-amx bench profile report report-check gpu-check

setup: $(ready)

$(ready): setup.py pyproject.toml
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "rdn_fast needs Python 3.10 or newer; give one with PY="; exit 2; }
ifeq ($(origin TORCH), file)
	@if $(PY) -c 'import torch' 2>/dev/null; then \
	    $(PY) -m venv --system-site-packages .venv; \
	    $(bin)/python -c 'import torch' 2>/dev/null || $(PY) -c '$(where)' > $$($(bin)/python -c '$(site)')/torch.pth; \
	else \
	    $(PY) -m venv .venv && $(bin)/python -m pip install --quiet $(TORCH); \
	fi
else
	$(PY) -m venv .venv
	$(bin)/python -m pip install --quiet $(TORCH)
endif
	$(bin)/python -m pip install --quiet --editable '.[log,demo,export,dev]'
	@touch $@

# Ascend's compiler, without a card or CANN, in an environment of its own: what proves npu_conv (docs/ascend.md).
# For Python 3.11 on x86-64 Linux, which PY must be.
setup-ascend:
	$(PY) -m venv .venv-ascend
	.venv-ascend/bin/python -m pip install --quiet triton-ascend==3.2.0 ascendnpu-ir==1.2.0 pybind11
	chmod +x .venv-ascend/lib/python3*/site-packages/ascendnpuir/bin/*

# NVRTC, without a card: what proves hopper's kernels (docs/cuda.md).
setup-nvrtc: $(ready)
	$(bin)/python -m pip install --quiet nvidia-cuda-nvrtc

demo: $(ready)
	$(bin)/rdn-fast demo

test: $(ready)
	$(bin)/python -m pytest -n 2 --dist loadfile

# What computes, as on other machines: low precision by default, then older processors' instructions for torch, oneDNN
# and the C files. A processor that has not got the instructions says so.
numerics := $(bin)/python -m pytest -q -n 2 --dist loadfile tests/rdb/test_rdb.py tests/rdb/test_in_c.py \
    tests/test_model.py tests/data/test_patches.py tests/training/test_train.py tests/training/test_optimizer_step.py \
    tests/training/test_loss_scale.py tests/profiling tests/bench/test_recipes.py
on = @if grep -qw $(1) /proc/cpuinfo; then echo "as on $(2), with ATEN_CPU_CAPABILITY=$(3) ONEDNN_MAX_CPU_ISA=$(4)" && \
    RDN_FAST_TEST_MARCH=$(2) ATEN_CPU_CAPABILITY=$(3) ONEDNN_MAX_CPU_ISA=$(4) $(numerics); \
    else echo "not tested as on $(2): this processor has no $(1)"; fi

test-machines: $(ready)
	RDN_FAST_TEST_LEVEL=O1 $(numerics)
	$(call on,sse4_2,x86-64-v2,default,SSE41)
	$(call on,avx2,x86-64-v3,avx2,AVX2)
	$(call on,avx512vl,x86-64-v4,avx512,AVX512_CORE)

test-slow: $(ready)
	$(bin)/python -m pytest -m slow -n 2 --dist worksteal

lint: $(ready)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror rdn_fast/*/*.c rdn_fast/*/*.cu* tests/rdb/host/* tests/devices/*.c tests/fake_npu/csrc/* tests/native/*.c
	$(bin)/python -m bench.report --check
	for script in test/*.sh .ci/run; do bash -n $$script || exit 1; done

# DATA: a folder with DIV2K_x2.h5 and Set5_x2.h5. NPROC: how many devices.
train-full: $(ready)
ifeq ($(NPROC), 1)
	bash test/train_full_1p.sh --data_path=$(DATA)
else
	bash test/train_full_8p.sh --data_path=$(DATA) --nproc $(NPROC)
endif

bench-1p: $(ready)
	$(bin)/python -m bench.run 1p

bench-8p: $(ready)
	$(bin)/python -m bench.run 8p --nproc $(if $(filter file,$(origin NPROC)),8,$(NPROC))

bench-upscale: $(ready)
	$(bin)/python -m bench.run upscale

# All that a CPU with AMX can tell about bf16; elsewhere the rows of amx say why they are not measured.
bench-amx: $(ready)
	$(bin)/python -m pip install --quiet --editable '.[bench]'
	$(bin)/python -m bench.run amx; code=$$?; \
	$(bin)/python -m profiling.roofline --batch-size 8 && $(bin)/python -m profiling.choices && exit $$code

bench: $(ready)
	$(bin)/python -m bench.run all

# Where a training step's time goes: outputs/profile and profiling/roofline.*
profile: $(ready)
	$(bin)/python -m profiling.trace
	$(bin)/python -m profiling.roofline
	$(bin)/python -m profiling.flame

report: $(ready)
	$(bin)/python -m bench.report

report-check: $(ready)
	$(bin)/python -m bench.report --check

# On a machine with a CUDA GPU, with the python that has torch there: nothing is installed. OUT=folder collects rows and log.
gpu-check:
	PYTHONPATH=$(CURDIR) $(PY) -m bench.gpu_check
