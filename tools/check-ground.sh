#!/bin/sh
# What a build needs of the machine, checked before anything is downloaded: what is missing, and what to do.
set -u
python=${PYTHON:-python3}
need_gib=12
trouble=0

missing() {
    echo "missing: $1" >&2
    echo "   what to do: $2" >&2
    trouble=1
}

if ! command -v "$python" >/dev/null 2>&1; then
    missing "$python" "install Python 3.11 or newer, or say which one with PYTHON=..."
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    missing "Python 3.11 or newer ($("$python" --version 2>&1) is too old)" "say which one with PYTHON=..."
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing "Python's venv module" "on Debian and Ubuntu: apt-get install python3-venv"
fi

if ! command -v cargo >/dev/null 2>&1; then
    missing "the Rust toolchain (cargo)" "install it from https://rustup.rs, then open a new shell"
else
    # The version as one number: 1.88.0 is 1088.
    version=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    number=$(echo "$version" | awk '{ print $1 * 1000 + $2 }')
    if [ "${number:-0}" -lt 1088 ]; then
        missing "Rust 1.88 or newer (found: $(rustc --version 2>/dev/null || echo none))" "run: rustup update stable"
    fi
fi

if ! command -v cc >/dev/null 2>&1; then
    missing "a C compiler (cc)" "on Debian and Ubuntu: apt-get install build-essential; on macOS: xcode-select --install"
fi

# Room for .venv (torch) and target/; what is there already needs no more.
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
there=0
[ -d .venv ] && there=$((there + 7))
[ -d target ] && there=$((there + 3))
if [ "$free" -lt $((need_gib - there)) ]; then
    missing "disk space: $free GiB are free here, $((need_gib - there)) are needed" \
        "free some, or clone to a larger disk; TMPDIR and pip's cache need room too"
fi

exit $trouble
