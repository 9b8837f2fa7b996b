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
STAMP=$VENV/cldm_jax.stamp # written last: a folder without it is an interrupted install
export NO_MKDOCS_2_WARNING=1

is_in_place() { [ -f "$STAMP" ] && cmp -s requirements-docs.txt "$STAMP"; }

# An environment that was named is used as it is.
check_named() {
  [ -x "$VENV/bin/python" ] || die "CLDM_DOCS_VENV=$VENV has no bin/python. Correct it, or unset it."
  "$VENV/bin/python" -c 'import material, mkdocs' 2>/dev/null ||
    die "$VENV lacks mkdocs or mkdocs-material. Install requirements-docs.txt, or unset CLDM_DOCS_VENV."
}

install() {
  bash launch/setup.sh # its interpreter makes the second environment
  say "docs: making $VENV"
  rm -rf "$VENV"
  "$VENV_PYTHON" -m venv "$VENV" || die "python -m venv $VENV failed: see above."
  printf '*\n' >"$VENV/.gitignore"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -q -r requirements-docs.txt ||
    die "the installation failed: see above. Run the same command to start it again."
  cp requirements-docs.txt "$STAMP"
}

main() {
  local dry_run="" command=(build --strict) flag
  for flag in "$@"; do
    case $flag in
      --dry-run) dry_run=yes ;;
      --serve) command=(serve) ;;
      --help | -h) # the first lines of this file: nothing is installed for them
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        return
        ;;
      *) die "unknown argument $flag. See --help." ;;
    esac
  done
  if [ -n "${CLDM_DOCS_VENV:-}" ]; then
    check_named
  elif ! is_in_place; then
    if [ -n "$dry_run" ]; then say "docs: would make $VENV"; else install; fi
  fi
  if [ -n "$dry_run" ]; then
    say "docs: would run $VENV/bin/python -m mkdocs ${command[*]}"
    return
  fi
  "$VENV/bin/python" -m mkdocs "${command[@]}"
  [ "${command[0]}" = serve ] || say "docs: $PWD/runs/site/index.html"
}

main "$@"
