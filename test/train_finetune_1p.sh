#!/usr/bin/env bash
# Fine-tuning on one card: 100 epochs, lr 1e-4, from --weights-file WEIGHTS.pth.
# --data_path=FOLDER with DIV2K_x2.h5 and Set5_x2.h5; every flag of `rdn-fast train` may follow.
source "$(dirname "${BASH_SOURCE[0]}")/env_npu.sh"
exec "$python" -m rdn_fast train --preset train-finetune-1p --outputs-dir outputs/train_finetune_1p "$@"
