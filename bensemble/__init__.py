"""bensemble: Bayesian layers, priors, objective, sampling and prediction on PyTorch."""
