#!/usr/bin/env bash
# Every stage of a recipe as a job of its own, each after those that it needs:
#
#   scripts/slurm/submit.sh recipes/t2i-256.toml DATA NODES [options of sbatch, such as -p gpu -A project]
#
# Stages that train or encode get NODES nodes with a process for each GPU; the others one process with one GPU. Stages
# that are done already end at once: after a failure, the same command submits what is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -ge 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
recipe=$1 data=$2 nodes=$3
shift 3
python="${PYTHON:-.venv/bin/python}"

stages() {
  "$python" - "$recipe" <<'PYTHON'
import sys
from pathlib import Path

from pipelines.config import load_recipe

recipe = load_recipe(Path(sys.argv[1]), ())
for name in recipe.order():
    stage = recipe.stage[name]
    print(name, int(stage.by_all), *stage.needs)
PYTHON
}

listed=$(stages) # a recipe that cannot be read ends here
declare -A jobs
while read -r name all needs; do
  options=(--parsable --job-name "palimpsest-$name")
  if [ "$all" = 1 ]; then options+=(--nodes "$nodes"); else options+=(--nodes 1 --ntasks-per-node 1 --gpus-per-node 1); fi
  after=""
  for need in $needs; do after+=":${jobs[$need]}"; done
  [ -z "$after" ] || options+=(--dependency "afterok$after" --kill-on-invalid-dep yes)
  job=$(sbatch "${options[@]}" "$@" scripts/slurm/stage.sbatch "$name" "$recipe" --data "$data")
  jobs[$name]=${job%%;*} # of a federation, sbatch also names the cluster
  echo "$name: job ${jobs[$name]}${after:+ after${after//:/ }}"
done <<<"$listed"
