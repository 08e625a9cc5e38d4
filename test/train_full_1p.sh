#!/usr/bin/env bash
# Accuracy on one card: 800 epochs, batch 64, lr 4e-4.
# --data_path=FOLDER with DIV2K_x2.h5 and Set5_x2.h5; every flag of `rdn-fast train` may follow.
source "$(dirname "${BASH_SOURCE[0]}")/env_npu.sh"
exec "$python" -m rdn_fast train --preset train-full-1p --outputs-dir outputs/train_full_1p "$@"
