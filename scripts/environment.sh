# Sourced by quickstart.sh and test.sh: makes .venv and installs the project into it, and says in one sentence what is wrong
# when it cannot. Usage: prepare EXTRA...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { echo "palimpsest: $*" >&2; exit 1; }

find_python() {
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$candidate"; return; fi
  done
  stop "no Python 3.11 or newer was found; install one, or name it: PYTHON=/path/to/python3 $0"
}

prepare() {
  local python wanted stamp
  python=$(find_python) || exit 1
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or what a failed attempt left
    rm -rf .venv
    "$python" -m venv .venv 2>/dev/null || stop "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
  fi
  wanted="$1 $(cksum <pyproject.toml)"
  stamp=.venv/palimpsest-$1
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing into .venv (a few minutes the first time; the log is .venv/install-$1.log)"
    .venv/bin/python -m pip install --disable-pip-version-check -e "$2" >".venv/install-$1.log" 2>&1 ||
      stop "the installation failed: $(grep -m1 -i error ".venv/install-$1.log" || tail -n 1 ".venv/install-$1.log"); the whole log is .venv/install-$1.log"
    echo "$wanted" >"$stamp"
  fi
}
