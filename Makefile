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

.PHONY: setup demo test test-slow lint train-full bench-1p bench-8p bench-upscale bench profile report report-check gpu-check

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

demo: $(ready)
	$(bin)/rdn-fast demo

test: $(ready)
	$(bin)/python -m pytest -n 2 --dist loadfile

test-slow: $(ready)
	$(bin)/python -m pytest -m slow -n 2 --dist worksteal

lint: $(ready)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror rdn_fast/*/*.c tests/fake_npu/csrc/* tests/native/*.c
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
