# Sourced by both runs: where everything is, and how a stage is run. Prints, never stops.
set -u
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$FOLDER/../.." && pwd)
PACKED=$REPO/build/first_light
OUT=${OUT:-$PACKED/out}
REHEARSAL=${FIRST_LIGHT_REHEARSAL:-}
[ -z "$REHEARSAL" ] || REHEARSAL=$(cd "$REHEARSAL" && pwd)
export FIRST_LIGHT_REHEARSAL=$REHEARSAL
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export REPO OUT PYTHONUNBUFFERED=1 MPLBACKEND=Agg OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

BUDGET=${BUDGET:-295} # s, of the whole run
FAILED=
say() { echo "== [$SECONDS s] $*"; }

# stage NAME SECONDS LOG COMMAND...: output to OUT/LOG, its end to the screen, one line to stages.txt
stage() {
  local name=$1 limit=$2 log=$3 begin=$SECONDS rc=0
  shift 3
  local left=$((BUDGET - SECONDS))
  [ "$limit" -lt "$left" ] || limit=$left
  [ -z "$REHEARSAL" ] || limit=900 # the emulation may take its time
  if [ "$limit" -lt 5 ]; then
    say "$name: no time left"
    echo "$name: not run, no time left" >> "$OUT/stages.txt"
    return 0
  fi
  say "$name"
  timeout -k 5 "$limit" "$@" >> "$OUT/$log" 2>&1 || rc=$?
  tail -n "${LINES_SHOWN:-12}" "$OUT/$log" | cut -c1-180
  [ "$rc" = 0 ] || FAILED=yes
  say "$name: exit $rc"
  echo "$name: exit $rc after $((SECONDS - begin)) s" >> "$OUT/stages.txt"
}

# with TOOL NAME SECONDS LOG OPTIONS -- COMMAND...: a stage under a tool of the toolkit
with() {
  local tool=$1 name=$2 limit=$3 log=$4 options=()
  shift 4
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  if [ -n "$REHEARSAL" ]; then
    stage "$name" "$limit" "$log" "$@"
  elif command -v "$tool" > /dev/null; then
    stage "$name" "$limit" "$log" "$tool" "${options[@]}" "$@"
  else
    say "$name: no $tool in PATH"
    echo "$name: not run, no $tool in PATH" >> "$OUT/stages.txt"
  fi
}

if [ -f "$PACKED/site.tar.xz" ] && [ -z "$REHEARSAL" ]; then
  SITE=$WORK/site
  mkdir -p "$SITE"
  tar xf "$PACKED/site.tar.xz" -C "$SITE"
  PYTHON=${PYTHON:-python3}
  # OpenMM's CUDA platform needs libnvrtc and libcufft, which torch's wheels have.
  NVIDIA=$("$PYTHON" -c 'import nvidia; print(*nvidia.__path__, sep="/cu13/lib:")' 2> /dev/null)/cu13/lib
  export PYTHONPATH=$SITE LD_LIBRARY_PATH=$SITE/lib:${LD_LIBRARY_PATH:-}:$NVIDIA PATH=$SITE/bin:$PATH
elif [ -x "$REPO/build/cuda/venv/bin/python" ]; then
  PYTHON=${PYTHON:-$REPO/build/cuda/venv/bin/python}
else
  PYTHON=${PYTHON:-python3}
fi
MODEL=${MODEL:-$PACKED/student.pt}
cd "$WORK" # not the repository: its mlff_distiller/ may have no compiled modules
on_card() { "$PYTHON" "$FOLDER/card.py" "$@"; }
if [ -z "$REHEARSAL" ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit \
    --format=csv,noheader | tee "$OUT/card.txt"
fi
on_card --versions 2>&1 | tee -a "$OUT/card.txt"
[ -f "$MODEL" ] || on_card --model "$MODEL"
CARD=("$PYTHON" "$FOLDER/card.py")
PYTEST=("$PYTHON" -m pytest -q -p no:cacheprovider -o "addopts=")
"$PYTHON" -c 'import xdist' 2> /dev/null && PYTEST+=(-n 8)
