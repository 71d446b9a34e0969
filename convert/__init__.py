"""convert: from deterministic to Bayesian and back."""
