"""Before the conversion: the entry itself."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..forward import first_difference, floating, run, scale
from ..subject import Subject, training


def source_is_sound(subject: Subject) -> None:
    """The entry itself: repeatable, finite, able to train. A failure here is an error of the zoo."""
    source, inputs = subject.source, subject.example.inputs
    start = time.process_time()
    subject.outputs = run(source, inputs)
    subject.result.facts["forward_seconds"] = round(time.process_time() - start, 2)
    distinct = list(source.parameters())
    subject.result.facts["parameters"] = sum(p.numel() for p in distinct)
    subject.result.facts["tensors"] = len(distinct)
    assert floating(subject.outputs), f"no floating output among {list(subject.outputs)}"
    difference = first_difference(subject.outputs, run(source, inputs))
    assert difference is None, f"two forwards in eval differ: {difference}"
    for path, value in floating(subject.outputs).items():
        assert bool((~torch.isnan(value)).all()), f"{path} is NaN"
        assert scale(value) < 1e12, f"{path} reaches {scale(value):.1g}"
    assert max(map(_spread, floating(subject.outputs).values())) > 1e-6, "the outputs are constant"
    with training(source):
        one = run(source, subject.train_inputs)
    with training(source):
        difference = first_difference(one, run(source, subject.train_inputs))
    assert difference is None, f"two forwards in train differ: {difference}"


def _spread(value: Tensor) -> float:
    return float((value.to(torch.complex64) - value.to(torch.complex64).mean()).abs().max()) if value.numel() else 0.0
