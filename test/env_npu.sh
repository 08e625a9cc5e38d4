# Sourced by the launchers: Ascend defaults that the user has not set, and the python to use. Harmless on other machines.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=python3
if [ -x "$root/.venv/bin/python" ]; then python="$root/.venv/bin/python"; fi

if [ -z "${ASCEND_TOOLKIT_HOME:-}" ] && [ -f /usr/local/Ascend/ascend-toolkit/set_env.sh ]; then
    source /usr/local/Ascend/ascend-toolkit/set_env.sh
fi
export TASK_QUEUE_ENABLE="${TASK_QUEUE_ENABLE:-2}"              # queue operators in binary mode
export CPU_AFFINITY_CONF="${CPU_AFFINITY_CONF:-2}"              # keep each card's host threads near it
export HCCL_WHITELIST_DISABLE="${HCCL_WHITELIST_DISABLE:-1}"    # no list of allowed peers
