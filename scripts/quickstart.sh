#!/usr/bin/env bash
# The main job on the built-in data: installs into .venv, trains every stage of recipes/scenes.toml, writes the report.
# Run it again after an interruption and it goes on. About 25 minutes on 2 CPU cores; a GPU is used where there is one.
source "$(dirname "$0")/environment.sh"
prepare main .
exec .venv/bin/palimpsest run recipes/scenes.toml "$@"
