#!/usr/bin/env bash
# One training on this machine: on its GPU, on all of its GPUs, or on the CPU where there is none. The batch is
# divided over the devices; nothing else changes. Started again after any end, it resumes.
#
#   bash launch/train.sh --config=configs/ldm.py:a6000 --workdir=runs/ldm
#   bash launch/train.sh --config=configs/ldm.py:multi --workdir=runs/ldm      all GPUs of this machine
#   CUDA_VISIBLE_DEVICES=0,1 bash launch/train.sh ...                          two of them
#   bash launch/train.sh --tries 5 ...     start again after a crash, at most so often (not after a signal
#                                          or a refused setting)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tries=1
case ${1:-} in
  --help | -h | "") usage && exit ;;
  --tries)
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "--tries needs a number. See --help."
    tries=$2
    shift 2
    ;;
esac
bash launch/setup.sh
has_gpu || export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

# A signal to this script goes to the training, once, which saves and leaves. With `set -m` the training is
# no part of the terminal's group: Ctrl-C would reach it there as well, and a second signal ends it unsaved.
set -m
child=
for name in TERM INT HUP; do
  # shellcheck disable=SC2064
  trap "[ -z \"\$child\" ] || kill -${name/HUP/TERM} \"\$child\" 2>/dev/null" "$name"
done
for ((number = 1; ; number++)); do
  "$VENV_PYTHON" -m cldm_jax.main "$@" &
  child=$! status=0
  wait "$child" || status=$?
  # The trap ends the first `wait`: the training may be saving still.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  case $status in
    0 | 2 | 130 | 143) exit $status ;; # done, refused, or stopped by a signal
  esac
  [ $number -lt "$tries" ] || die "ended with status $status after $number tries. The same command resumes."
  say "ended with status $status; try $((number + 1)) of $tries resumes"
done
