"""Self-supervised teachers."""
