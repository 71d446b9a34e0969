"""How any model is read and run: batches, inputs and outputs, devices, shards and processes, evaluation mode.

Nothing here knows of posteriors. What a Bayesian layer or a posterior is belongs into the rooms above.
"""
