"""Which noise a forward sees: weight samples that a context holds, and the read-only draws that layers hand out.

What a posterior is lives below, in ``posterior``. The public contexts that open a sample are in ``prediction``.
"""
