#!/usr/bin/env bash
# Set up and run the tests. Arguments go to pytest: `bash scripts/test.sh --slow`, `bash scripts/test.sh -k lora`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[test]"
source scripts/browser.sh
# One thread per test process: the small models of the tests gain nothing from more, and the processes share the cores.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" "$@"
