"""APO training."""
