#!/bin/sh
# Pairs from the sample prompts with the embedded model, then their numbers and one diff.
set -eu
bin=$1
folder=${2:-demo}
prompts=python/clair_apo/data/demo_prompts.jsonl
out=$folder/pairs.parquet
mkdir -p "$folder"

step() {
    printf '\n$ clair-apo %s\n' "$*"
    "$bin/clair-apo" "$@"
}

echo
echo "The embedded model answers and revises $(wc -l < "$prompts" | tr -d ' ') sample prompts: 1 to 3 minutes on two cores."
step build-pairs --input "$prompts" --output "$out"
step stats "$out"
step diff "$out" --smallest 1

echo
echo "The pairs are in $out. With a reviser of your own:"
echo "   $bin/clair-apo build-pairs --input prompts.parquet --reviser NAME --reviser-url http://localhost:8000/v1"
