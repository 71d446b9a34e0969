"""The candidates of a search as files: pruned, repaired, compacted, exported, evaluated in ONNX Runtime, and timed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from bensemble.errors import BensembleError, ConversionError, ExportError, InvalidValueError
from bensemble.models.batches import Inputs, batch_size, call, device_of, to_device
from bensemble.models.outputs import OutputSelector, describe
from bensemble.pruning.channels import ChannelGroups
from bensemble.pruning.criteria import Scores
from bensemble.torch_internals import forward_pre_hooks

from ..graph.compaction import compact
from ..onnx import OnnxModel, compare_onnx, export_onnx
from ..onnx.files.variants import checked_metric
from ..reports.zeros import sparsity
from ..surgery.collapsing import to_deterministic
from .candidates import Candidate
from .chance import check_baseline
from .confirming import ExampleScores
from .record import Record, candidate_of
from .results import Point

__all__ = ["CandidateFiles"]

log = logging.getLogger("bensemble.compress")


@dataclass
class CandidateFiles:
    """Makes and measures the file of each candidate once, in a folder that goes with the search.

    Attributes:
        bnn: The Bayesian model.
        evaluate: ``callable(model) -> float``, higher is better.
        example_inputs: What one call takes.
        folder: Where the files lie.
        granularities: What pruning takes, by the names that candidates use.
        calibration_data: What int8 is calibrated with.
        repair: Called with every pruned network, whose pruned weights then stay pruned.
        sparse: Whether mostly-zero weights may be stored as sparse tensors.
        output: Which output of the model to export.
        progress: Called with each measured point.
        rankings: The scores that weights go by, under their names; None for the signal-to-noise ratio.
        record: What a search in this folder has measured before; None in a temporary one.
        like: What the network itself returns, for ``evaluate``; None where ``output`` names one output.
        points: What was measured so far, the first one the reference of drops and ratios.
        notes: Candidates that could not be written, and why.
    """

    bnn: nn.Module
    evaluate: Callable[[nn.Module], float]
    example_inputs: Inputs
    folder: Path
    granularities: Mapping[str, str | ChannelGroups]
    calibration_data: Any = None
    repair: Callable[[nn.Module], Any] | None = None
    sparse: bool = True
    output: OutputSelector | None = None
    progress: Callable[[Point], None] | None = None
    rankings: Mapping[str, Scores | None] = field(default_factory=lambda: {"snr": None})
    record: Record | None = None
    like: Any = None
    points: dict[Candidate, Point] = field(default_factory=dict)
    notes: dict[Candidate, str] = field(default_factory=dict)

    def path(self, point: Point) -> Path:
        """Where a file lies."""
        return self._place(candidate_of(point), "onnx")

    def _place(self, candidate: Candidate, ending: str) -> Path:
        words = ("mean",) if candidate.threshold is None else (candidate.score, candidate.granularity)
        number = "" if candidate.threshold is None else repr(candidate.threshold)
        return self.folder / f"{' '.join(filter(None, (*words, number, candidate.quantize)))}.{ending}"

    def measure(self, candidate: Candidate) -> Point | None:
        """The point of a candidate, without its latency; None where it cannot be written."""
        if candidate in self.points or candidate in self.notes:
            return self.points.get(candidate)
        path = self._place(candidate, "onnx")
        known = None if self.record is None or not path.exists() else self.record.points.get(candidate)
        if known is not None and self.points:
            return self._noted(candidate, replace(known, latency_ms=math.nan, latency_ratio=math.nan))
        network, removed = self._network(candidate)
        try:
            report = export_onnx(
                compact(network, self.example_inputs),
                path,
                self.example_inputs,
                output=self.output,
                quantize=candidate.quantize,
                calibration_data=self.calibration_data if candidate.quantize else None,
                sparse=self.sparse,
            )
        except (ExportError, ConversionError) as err:
            if candidate.threshold is None:  # no candidate can be written, or none in eight bits
                raise
            self.notes[candidate] = f"{candidate}: not written, {str(err).splitlines()[0]}"
            log.info("%s", self.notes[candidate])
            return None
        if not self.points and self.output is None:
            with torch.no_grad():
                self.like = call(network.eval(), to_device(self.example_inputs, device_of(network)))
        metric = self._evaluated(path, candidate)
        best = next(iter(self.points.values())).metric if self.points else metric
        point = Point(
            name=str(candidate),
            threshold=candidate.threshold,
            granularity=candidate.granularity,
            score=None if candidate.threshold is None else candidate.score,
            quantize=candidate.quantize,
            metric=metric,
            drop=round(best - metric, 12),  # 0.9 - 0.89 is a hair above 0.01
            sparsity=removed,
            parameters=report.parameters,
            size=report.size,
            gzip_size=report.gzip_size,
        )
        if known is not None and known.metric != metric:
            raise InvalidValueError(
                f"compress: folder '{self.folder}' must be of this evaluate, got {known.metric:.6g} there and "
                f"{metric:.6g} now for the same file; choose another folder, or empty it."
            )
        return self._noted(candidate, point)

    def _noted(self, candidate: Candidate, point: Point) -> Point:
        """Take a measured point in."""
        self.points[candidate] = point
        log.info("%s: metric %.4g, %d bytes", candidate, point.metric, point.size)
        if self.record is not None:
            self.record.write([point])
        if self.progress is not None:
            self.progress(point)
        return point

    def check_baseline(self, max_drop: float | None) -> float:
        """Refuse a network whose score does not tell it from outputs that mean nothing; the best score of these."""
        first = next(iter(self.points.values()))
        with torch.no_grad():
            return check_baseline(self.evaluate, OnnxModel(self.path(first), like=self.like), first.metric, max_drop)

    def time(self, rounds: int = 5) -> None:
        """Give every point its latency on the example inputs, all files taking turns."""
        names = {candidate: self.path(point) for candidate, point in self.points.items()}
        size = batch_size(self.example_inputs)
        found = compare_onnx(
            {str(path): path for path in names.values()}, self.example_inputs, batch_sizes=(size,), rounds=rounds
        )
        for candidate, path in names.items():
            timing = found[str(path)].latency[size]
            self.points[candidate] = replace(self.points[candidate], latency_ms=timing.ms, latency_ratio=timing.ratio)

    def scored(self, point: Point, scores: ExampleScores) -> Tensor:
        """The scores of examples by one file."""
        with torch.no_grad():
            found: Tensor = self._call("confirm", scores, OnnxModel(self.path(point), like=self.like), point.name)
        return found

    def _network(self, candidate: Candidate) -> tuple[nn.Module, float]:
        """The plain network of a candidate, and the share of its weights that pruning removed."""
        if candidate.threshold is None:
            network = to_deterministic(self.bnn)
        elif self.repair is None:
            network = self._pruned(candidate)
        else:
            network = self._repaired(candidate, self.repair)
        return network, sparsity(network).sparsity

    def _pruned(self, candidate: Candidate, keep_masks: bool = False) -> nn.Module:
        granularity = self.granularities[str(candidate.granularity)]
        return to_deterministic(
            self.bnn,
            threshold=candidate.threshold,
            granularity=granularity,
            scores=self.rankings[candidate.score],
            keep_masks=keep_masks,
        )

    def _repaired(self, candidate: Candidate, repair: Callable[[nn.Module], Any]) -> nn.Module:
        """The repaired network, the same for the float and the int8 file; between them its weights are on the disk."""
        kept = self._place(replace(candidate, quantize=None), "pt")
        if kept.exists():
            network = to_deterministic(self.bnn)
            network.load_state_dict(torch.load(kept, weights_only=True))
            return network
        network = self._pruned(candidate, keep_masks=True)
        self._call("repair", repair, network, candidate)
        _make_permanent(network)
        if self.calibration_data is not None:
            torch.save(network.state_dict(), kept)
        return network

    def _evaluated(self, path: Path, candidate: Candidate) -> float:
        with torch.no_grad():
            value = self._call("evaluate", self.evaluate, OnnxModel(path, like=self.like), candidate)
        return checked_metric("compress", value, str(candidate))

    def _call(
        self, name: str, function: Callable[[nn.Module], Any], network: nn.Module, candidate: Candidate | str
    ) -> Any:
        try:
            return function(network)
        except BensembleError:
            raise
        except Exception as err:
            raise ConversionError(
                f"compress: {name} failed on '{candidate}', got {type(err).__name__}: "
                f"{(str(err).splitlines() or [''])[0][:200]}; what it gets is called like the model itself, on the "
                f"CPU, and returns {'one output' if self.like is None else describe(self.like)}."
            ) from err


def _make_permanent(network: nn.Module) -> None:
    """Zeros in the weights in place of the masks of torch.nn.utils.prune."""
    for module in network.modules():
        for hook in forward_pre_hooks(module):
            if isinstance(hook, torch_prune.BasePruningMethod):
                torch_prune.remove(module, hook._tensor_name)
