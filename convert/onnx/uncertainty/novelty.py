"""Novelty in a file: the scores and p-values of :class:`bensemble.Novelty`, in float32 and by plain operators."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bensemble.errors import ExportError, InvalidValueError
from bensemble.likelihoods import Categorical
from bensemble.models.batches import Inputs
from bensemble.novelty import Novelty
from bensemble.novelty.classes import term_shape
from bensemble.novelty.distance import RelativeDistance
from bensemble.novelty.heldout import MOST
from bensemble.prediction.strangers import bound_novelty

__all__ = ["FileNovelty"]

#: Scores of two correct programs differ by rounding: by so many standard deviations of the familiar ones as a rule, and
#: hardly ever by more than ten times that.
LEAST_DIFFERENCE, MOST_DIFFERENCE = 1e-5, 1e-4
#: In a few ill-conditioned fits float32 is off by some thousandths; other inputs are by more.
SAME = 0.05
#: Quantiles of familiar scores that the file tells a monitor, at evenly spaced levels.
LEVELS = 101
#: So many held-out scores are compared with one by one.
FEW = 1024


class FileNovelty(nn.Module):
    """The novelty of one network, or the mean one of an ensemble.

    Args:
        novelty: What ``fit_novelty`` returned; for an ensemble one for each member.
        sources: The user's model, or the members of an ensemble. Their copies compute parametrized weights beforehand.
        networks: Their deterministic copies on the CPU, which are watched.

    Attributes:
        slack: How far scores and p-values of two correct programs may be apart; p-values jump at held-out scores.

    Raises:
        InvalidTypeError, InvalidValueError: It is not a novelty of these models.
    """

    heldout: Tensor
    last: Tensor
    blocks: Tensor

    def __init__(self, novelty: Any, sources: Sequence[nn.Module], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        together = bound_novelty(novelty, sources)
        assert together is not None
        bound = [together] if isinstance(together, Novelty) else list(together.members)  # type: ignore[attr-defined]
        self._networks, self._bound = tuple(networks), tuple(bound)
        self._members = tuple(_Score(member) for member in bound)
        self.members = nn.ModuleList(self._members)
        self._heldout = heldout = together.heldout.cpu().sort().values  # type: ignore[attr-defined]
        near = MOST_DIFFERENCE * heldout.std()
        crowd = torch.searchsorted(heldout, heldout + near) - torch.searchsorted(heldout, heldout - near)
        self.slack = {
            "novelty": LEAST_DIFFERENCE * float(heldout.std()),
            "novelty_pvalue": (1 + int(crowd.max())) / (len(heldout) + 1),
        }
        self.register_buffer("blocks", _blocks(heldout))
        self.register_buffer("last", self.blocks[:-1, -1].contiguous())

    @contextmanager
    def watching(self, index: int, inputs: Inputs) -> Iterator[list[list[Tensor]]]:
        """While it is open, the forward of a network gathers what its novelty reads."""
        with self._bound[index].reader.watching(self._networks[index], inputs) as found:
            yield found

    def score(self, index: int, raw: Tensor, found: list[list[Tensor]]) -> Tensor:
        """The score of each term, from the outputs of one network and what was gathered."""
        reader, likelihood = self._bound[index].reader, self._bound[index].likelihood
        shape, energy = term_shape(likelihood, raw), None
        if isinstance(likelihood, Categorical):
            energy = raw.to(self.blocks.dtype).logsumexp(likelihood.axis(raw))
            energy = energy if energy.ndim == 1 else energy.flatten()
        rows = [x.to(self.blocks.dtype) for x in reader.rows(reader.features(found), shape[1:])]
        scores = self._members[index](rows, energy)
        return scores if len(shape) == 1 else scores.view(shape)

    def outputs(self, scores: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs of the file, from the scores of each network."""
        mean = torch.stack(list(scores)).mean(0) if len(scores) > 1 else scores[0]
        place, kind, rows = mean.unsqueeze(-1), mean.dtype, self.blocks[0]
        # p is the share of held-out scores, and of infinity, that are at least the score: 0 or below for NaN.
        if len(self.blocks) > 1:
            above = (place <= self.last).to(kind).sum(-1)
            rows = nn.functional.embedding((len(self.last) - above).long(), self.blocks)
        pvalue = (place <= rows).to(kind).mean(-1)
        if len(self.blocks) > 1:
            size, count = self.blocks.shape[1], len(self._heldout) + 1
            pvalue = (above + (pvalue - (len(self.blocks) - count / size))) * (size / count)
        return {"novelty": mean.float(), "novelty_pvalue": pvalue.float()}

    def metadata(self) -> dict[str, str]:
        """What a monitor needs: the held-out scores in quantiles, and how many they were."""
        return {"bensemble.novelty": _described(self._heldout)}

    def counted(self, scores: Tensor, target: Any) -> Tensor:
        """The scores of one batch but those that ``fit_novelty`` left out for their target, flattened."""
        likelihood = self._bound[0].likelihood
        has_classes = isinstance(target, Tensor) and target.shape == scores.shape
        if has_classes and isinstance(likelihood, Categorical):
            return scores[target != likelihood.ignore_index]
        return scores.flatten()

    def check_heldout(self, scores: Tensor) -> None:
        """Refuse inputs, by their scores, that are not the held-out ones that the novelty was fitted with.

        Raises:
            InvalidValueError: They are others.
        """
        found = scores.double().sort().values
        if len(found) > MOST >= len(self._heldout):
            raise InvalidValueError(
                f"export_onnx: quantize='int8' with novelty needs a novelty that holds all of its held-out terms, got "
                f"{len(self._heldout):,} chosen at random of {len(found):,}; fit it with at most {MOST:,} of them."
            )
        if len(found) != len(self._heldout) or bool((found - self._heldout).abs().max() > SAME * self._heldout.std()):
            raise InvalidValueError(
                "export_onnx: quantize='int8' with novelty needs the val_loader of fit_novelty as calibration_data, "
                f"whose scores p-values are counted among, got {len(found):,} terms with other scores than its "
                f"{len(self._heldout):,}; pass that loader with its targets, and let it give the same inputs each time."
            )

    def recount(self, proto: onnx.ModelProto, scores: Tensor) -> None:
        """Let p-values of a rounded graph count among its own scores of the held-out inputs.

        Rounded features look stranger than those that the novelty was fitted to: in digits 8.8 % of familiar images
        had a p-value of at most 5 %.

        Args:
            proto: The graph, which is changed.
            scores: What it gives for the held-out inputs.
        """
        heldout = scores.double().sort().values
        blocks = _blocks(heldout)
        for old, new in ((self.blocks, blocks), (self.last, blocks[:-1, -1])):
            same = [tensor for tensor in proto.graph.initializer if _holds(tensor, old.numpy())]
            if old.numel() and not same:
                raise ExportError(
                    "export_onnx: quantize='int8' must find the held-out scores of the novelty in the graph, got none "
                    "of them; export without quantize, or without novelty."
                )
            for tensor in same:
                tensor.CopyFrom(onnx.numpy_helper.from_array(new.numpy().reshape(tensor.dims), tensor.name))
        for entry in proto.metadata_props:
            if entry.key == "bensemble.novelty":
                entry.value = _described(heldout)


def _blocks(heldout: Tensor) -> Tensor:
    """Sorted scores and infinity in rows: comparisons in place of a search, which ONNX does not have.

    One row where they are few, else about as many rows as columns, so that a row is found first.
    """
    scores = torch.cat([heldout.float(), torch.tensor([math.inf])])
    size = len(scores) if len(scores) <= FEW else math.isqrt(len(scores)) + 1
    return torch.cat([scores, scores[-1:].expand(-len(scores) % size)]).view(-1, size)


def _described(heldout: Tensor) -> str:
    quantiles = torch.quantile(heldout, torch.linspace(0, 1, LEVELS, dtype=heldout.dtype)).tolist()
    return json.dumps({"num_data": len(heldout), "quantiles": quantiles})


def _holds(tensor: onnx.TensorProto, values: np.ndarray) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) != values.size:
        return False
    return bool(np.array_equal(onnx.numpy_helper.to_array(tensor).ravel(), values.ravel()))


class _Score(nn.Module):
    """The score of one network as few operations: all standardisations are folded into the constants."""

    energy: Tensor

    def __init__(self, novelty: Novelty) -> None:
        super().__init__()
        standard = novelty.standard.cpu().double()
        offset = -standard[0] / standard[1]
        if len(standard) > 2:
            offset = offset - standard[2] / standard[3]
            self.register_buffer("energy", (-1 / standard[3]).float())
        for number, distance in enumerate(novelty.distances):
            assert isinstance(distance, RelativeDistance)
            d = copy.deepcopy(distance).cpu().double()
            share = 1 / (d.scale * standard[1])
            offset = (offset if number == 0 else 0) - d.location * share
            constants = {
                "directions": d.directions.T,
                "shift": -d.directions @ d.centre,
                "weights": share * d.weights[:, None],
                "slopes": -2 * share * d.slopes.T,
                "norms": share * d.norms + offset,
            }
            if len(d.directions) < len(d.centre):
                constants |= {"centre": d.centre, "rest": (share * d.rest).expand(len(d.centre), 1)}
            for name, tensor in constants.items():
                self.register_buffer(f"{name}{number}", tensor.float().contiguous())

    def forward(self, rows: Sequence[Tensor], energy: Tensor | None) -> Tensor:
        """The score of each term from the features for each Gaussian, (N, k), and the negative energies, (N,)."""
        total = None if energy is None else energy * self.energy
        for number, x in enumerate(rows):
            directions, shift, weights, slopes, norms = (
                self.get_buffer(f"{name}{number}") for name in ("directions", "shift", "weights", "slopes", "norms")
            )
            p = torch.addmm(shift, x, directions)
            distance = torch.addmm(torch.addmm(norms, p, slopes).amin(1, keepdim=True), p * p, weights)
            if hasattr(self, f"rest{number}"):
                outside = x - torch.addmm(self.get_buffer(f"centre{number}"), p, directions.T)
                distance = torch.addmm(distance, outside * outside, self.get_buffer(f"rest{number}"))
            distance = distance.squeeze(1)
            total = distance if total is None else total + distance
        assert total is not None
        return total
