#!/usr/bin/env bash
# Executes the notebooks in place, top to bottom and from nothing (runs/notebooks is deleted first), and says
# how long each took. For whoever changed one of them, or what they show: their outputs are committed.
#
#   bash launch/notebooks.sh            all of notebooks/
#   bash launch/notebooks.sh 03 05      those whose names begin so
#   bash launch/notebooks.sh --keep 03  with the data that an earlier run left in runs/notebooks
#
# One that fails is left as it was, and the exit status is 1.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Runs the notebook $1 where it lies and writes it back: outputs without times, kernel and machine left out.
execute() {
  "$VENV_PYTHON" - "$1" <<'PYTHON'
import pathlib
import sys

import nbformat
from nbclient import NotebookClient

path = pathlib.Path(sys.argv[1])
notebook = nbformat.read(path, as_version=4)
where = {"metadata": {"path": str(path.parent)}}
options = dict(timeout=1800, kernel_name="python3", record_timing=False)
NotebookClient(notebook, resources=where, **options).execute()
notebook.metadata.pop("widgets", None)  # the slider's state, pictures included: nothing on the web shows it
notebook.metadata["language_info"] = {"name": "python"}
nbformat.write(notebook, path)
PYTHON
}

main() {
  local keep="" names=() failed=() path name started
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && return ;;
      --keep) keep=yes ;;
      -*) die "unknown argument $1. See --help." ;;
      *) compgen -G "notebooks/$1*.ipynb" >/dev/null || die "no notebook begins with $1. See --help." && names+=("$1") ;;
    esac
    shift
  done
  [ ${#names[@]} -gt 0 ] || names=("")
  bash launch/setup.sh
  has_gpu || export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  [ -n "$keep" ] || rm -rf runs/notebooks
  for name in "${names[@]}"; do
    for path in notebooks/"$name"*.ipynb; do
      started=$SECONDS
      if execute "$path"; then
        say "$path: $(clock $((SECONDS - started))), $(($(wc -c <"$path") / 1000)) kB"
      else
        failed+=("$path")
      fi
    done
  done
  [ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
}

main "$@"
