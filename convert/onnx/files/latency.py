"""How long the written file takes in ONNX Runtime, at several batch sizes."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..inputs.axes import BATCH, Axis, resized
from ..inputs.trials import one_line
from .measuring import BATCH_SIZES
from .running import feed

__all__ = ["latency"]

logger = logging.getLogger("bensemble.onnx")

#: A batch size whose single run is expected to take longer than this is left out.
LONGEST_RUN = 1.0

#: Seconds spent on timing one batch size, in 3 to 200 runs.
SECONDS = 0.2


def latency(session: Any, tensors: Sequence[Tensor], axes: Sequence[Axis]) -> dict[int, float]:
    """Median milliseconds of a run by batch size, other axes as in the example; key 0 where there is no batch axis."""
    batch = next((axis for axis in axes if axis.name == BATCH), None)
    if batch is None:
        return {0: _median_ms(session, tensors)}
    found: dict[int, float] = {}
    sizes = [size for size in BATCH_SIZES if batch.allows(size)] or [batch.size]
    for size in sizes:
        if found and max(found.values()) / max(found) * size > LONGEST_RUN * 1e3:
            break
        try:
            found[size] = _median_ms(session, resized(tensors, batch, size))
        except Exception as err:  # the model may reject this size as well
            logger.debug("no latency at batch %d: %s", size, one_line(err))
    return found


def _median_ms(session: Any, tensors: Sequence[Tensor]) -> float:
    given = feed(session, tensors)
    session.run(None, given)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < SECONDS and len(times) < 200):
        start = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
