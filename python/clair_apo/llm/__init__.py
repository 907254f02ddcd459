"""Asking language models: endpoints, the local model, and the ledger that never pays twice."""
