#!/usr/bin/env bash
# The pages of docs/, README, CONTRIBUTING and CHANGELOG as one site of plain files, by MkDocs Material in an
# environment of its own, .venv-docs (165 MB). Building needs no network once that is there, and the pages
# load nothing from one. A link or an anchor that leads nowhere ends it with exit status 1.
#
#   bash launch/docs.sh              into runs/site; open runs/site/index.html
#   bash launch/docs.sh --serve      shown at http://127.0.0.1:8000, made again as pages change
#   bash launch/docs.sh --dry-run    only print what would be done
#
#   CLDM_DOCS_VENV=DIR   an environment that has MkDocs Material already: nothing is installed
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VENV=${CLDM_DOCS_VENV:-.venv-docs}
export NO_MKDOCS_2_WARNING=1
dry_run="" command=(build --strict)
for flag in "$@"; do
  case $flag in
    --dry-run) dry_run=yes ;;
    --serve) command=(serve) ;;
    --help | -h) usage && exit ;;
    *) die "unknown argument $flag. See --help." ;;
  esac
done
second_venv "$VENV" CLDM_DOCS_VENV "material mkdocs" requirements-docs.txt
if [ -n "$dry_run" ]; then
  say "docs: would run $VENV/bin/python -m mkdocs ${command[*]}"
  exit
fi
"$VENV/bin/python" -m mkdocs "${command[@]}"
[ "${command[0]}" = serve ] || say "docs: $PWD/runs/site/index.html"
