#!/usr/bin/env bash
# Speed on one card: the same for 1 epoch.
# --data_path=FOLDER with DIV2K_x2.h5 and Set5_x2.h5; every flag of `rdn-fast train` may follow.
source "$(dirname "${BASH_SOURCE[0]}")/env_npu.sh"
exec "$python" -m rdn_fast train --preset train-performance-1p --outputs-dir outputs/train_performance_1p "$@"
