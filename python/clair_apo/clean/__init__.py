"""Tables of pairs, cleaned: rows chosen, deduplicated, split, converted, freed of benchmarks."""
