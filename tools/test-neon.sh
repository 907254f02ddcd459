#!/bin/sh
# The tests of clair-core for aarch64, under qemu: here the NEON paths run on any machine.
#
#     sh tools/test-neon.sh [TEST-NAME …]      PROFILE=release
#
# Without its pieces it says which are missing and ends well; with them it fails where a test does.
set -eu

TARGET=aarch64-unknown-linux-musl
PROFILE=${PROFILE:-release}

missing=
libdir=$(rustc --print target-libdir --target "$TARGET" 2>/dev/null || true)
[ -d "${libdir:-/nonexistent}" ] ||
    missing="$missing
  Rust's standard library for it:  rustup target add $TARGET"
# The compressors behind Parquet are C. Static code for musl takes glibc's headers as well.
command -v aarch64-linux-gnu-gcc >/dev/null && echo '#include <stdlib.h>' | aarch64-linux-gnu-gcc -E -x c - >/dev/null 2>&1 ||
    missing="$missing
  a C compiler for it:             apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
[ -n "$qemu" ] ||
    missing="$missing
  the emulator:                    apt-get install qemu-user-static"
if [ -n "$missing" ]; then
    echo "test-neon: skipped, since this machine lacks$missing"
    exit 0
fi

upper=$(echo "$TARGET" | tr 'a-z-' 'A-Z_')
lower=$(echo "$TARGET" | tr - _)
# A fortified libc's checking functions are not in musl.
exec env \
    "CC_$lower=aarch64-linux-gnu-gcc" "AR_$lower=aarch64-linux-gnu-ar" "CFLAGS_$lower=-U_FORTIFY_SOURCE" \
    "CARGO_TARGET_${upper}_LINKER=rust-lld" "CARGO_TARGET_${upper}_RUNNER=$qemu" \
    cargo --locked test --profile "$PROFILE" -p clair-core --target "$TARGET" -- "$@"
