#!/bin/sh
# Each fuzz target of rust/fuzz for a while, with libFuzzer and, where the toolchain has it, AddressSanitizer.
#
#     sh tools/fuzz.sh [TARGET …]      EACH=20: seconds for each target
#
# Inputs that reach new code are kept in target/fuzz/corpus and are where the next run begins; what fails is
# written to target/fuzz/artifacts, and this ends with 1. To try one input again: target/fuzz/TARGET FILE.
set -eu
cd "$(dirname "$0")/.."

seconds=${EACH:-20}
folder=$PWD/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo fuzz passes too: coverage of every edge and of comparisons.
flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$option"
done
# The sanitizer's flag is not a stable one, its runtime comes with the stable toolchain: the same compiler
# takes it when asked to.
if [ -e "$(rustc --print target-libdir)/librustc-stable_rt.asan.a" ]; then
    export RUSTC_BOOTSTRAP=1
    flags="$flags -Zsanitizer=address"
else
    echo "fuzz: this toolchain has no AddressSanitizer; going on without" >&2
fi

# With --target, build scripts and macros are left without these flags.
RUSTFLAGS="$flags" CARGO_TARGET_DIR="$folder/build" cargo build --release --target "$host" \
    --manifest-path rust/fuzz/Cargo.toml

targets=${*:-$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' rust/fuzz/Cargo.toml)}
failed=
for target in $targets; do
    program=$folder/build/$host/release/$target
    [ -x "$program" ] || { echo "fuzz: there is no target '$target'" >&2; exit 2; }
    ln -sf "$program" "$folder/$target"
    mkdir -p "$folder/corpus/$target" "$folder/artifacts/$target"
    # Two long texts of one another's words to begin with: kernels have ways of their own for these.
    { head -c 1800 README.md; printf '\377'; sed -n 20,60p README.md; } >"$folder/corpus/$target/readme"
    log=$folder/$target.log
    if "$program" -max_total_time="$seconds" -max_len=4096 -len_control=20 -timeout=20 -rss_limit_mb=4096 \
        -artifact_prefix="$folder/artifacts/$target/" "$folder/corpus/$target" >"$log" 2>&1; then
        echo "$target: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/\1 inputs in \2 s/p' "$log")," \
            "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1) edges; nothing found"
    else
        failed="$failed $target"
        echo "$target: FAILED, see $log"
        grep -a -m 3 -E "panicked|ERROR: |Test unit written" "$log" || true
    fi
done
[ -z "$failed" ] || { echo "fuzz: failed:$failed" >&2; exit 1; }
