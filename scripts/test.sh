#!/usr/bin/env bash
# The whole test suite: installs the test extra into .venv and runs pytest, a process of one thread for each core (8 at most).
# Arguments go to pytest, which then runs what they name in one process.
source "$(dirname "$0")/environment.sh"
prepare test '.[test]'
export OMP_NUM_THREADS=1
[ $# -gt 0 ] || set -- -n auto --maxprocesses 8 --dist loadfile
exec .venv/bin/python -m pytest "$@"
