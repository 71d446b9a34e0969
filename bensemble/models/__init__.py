"""How any model is read and run: batches, inputs and outputs, devices, shards and processes, evaluation mode.

Nothing here knows posteriors. What concerns a Bayesian layer or a posterior does not belong here.
"""
