"""What a monitor says."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """The result of a monitor.

    Attributes:
        drifted: Whether the evidence is at least -log(false_alarm_rate).
        evidence: Logarithm of the largest e-value of a measure, times its share of the false-alarm rate.
        false_alarm_rate: Largest probability of a false alarm over the whole stream, for any number of verdicts.
        measure: The output with the largest evidence; ``"class"`` for the most probable classes.
        since: Where the drift probably began: the first example that most of this evidence counts.
        seen: Number of examples.
        share_high: Share of the examples since then above the 0.9-quantile of the calibration data.
        expected_high: That share without drift, about 0.1.

    Example:
        >>> has_drifted = convert.runtime.Monitor("sure.onnx").verdict().drifted
    """

    drifted: bool
    evidence: float
    false_alarm_rate: float
    measure: str
    since: int
    seen: int
    share_high: float
    expected_high: float

    def __str__(self) -> str:
        state = f"drift in {self.measure} since example {self.since}" if self.drifted else "no drift"
        measure = "" if self.measure == "class" else f"; {self.share_high:.0%} have a high {self.measure}"
        measure += f", {self.expected_high:.0%} expected" if measure else ""
        return (
            f"{state}, {self.seen} examples seen: evidence {self.evidence:.1f}, alarm from "
            f"{-math.log(self.false_alarm_rate):.1f} on (false alarms at most {self.false_alarm_rate:g}){measure}"
        )
