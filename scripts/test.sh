#!/usr/bin/env bash
# The whole test suite: installs the test extra into .venv and runs pytest. Arguments go to pytest.
source "$(dirname "$0")/environment.sh"
prepare test '.[test]'
exec .venv/bin/python -m pytest "$@"
