"""``compress``: prune, compact, quantise, write, measure; and of all files the best one that meets what was asked."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bensemble.checkpoint.writing import checked_target, replacing, working_folder
from bensemble.checks import check_number, check_takes
from bensemble.errors import ConversionError, InvalidValueError, shown
from bensemble.fingerprints import posterior_fingerprint
from bensemble.models.batches import Inputs
from bensemble.models.outputs import OutputSelector
from bensemble.posteriors import check_bayesian
from bensemble.pruning.channels import ChannelGroups

from ..graph.compaction import channel_groups
from ..repairing import repair as repair_network
from ..scoring import prune_scores
from ..surgery.collapsing import to_deterministic
from .candidates import SCORES, SHARES, Candidate, ladders
from .chance import warn_of_ruin
from .climbing import climb, quantize
from .confirming import Confirmation, ExampleScores, compared, example_scores
from .files import CandidateFiles
from .record import Record
from .results import Compression, Constraints, Point, UnmetConstraintsError

__all__ = ["compress"]

log = logging.getLogger("bensemble.compress")


def compress(
    bnn: nn.Module,
    evaluate: Callable[[nn.Module], float],
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size: int | None = None,
    granularities: Sequence[str] = ("weight", "channel"),
    scores: Sequence[str] = ("snr", "magnitude"),
    calibration_data: Any = None,
    repair: Iterable[Any] | Callable[[nn.Module], Any] | None = None,
    refine: int = 3,
    sparse: bool = True,
    output: OutputSelector | None = None,
    progress: Callable[[Point], None] | None = None,
    confirm: Iterable[Any] | Callable[[nn.Module], Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Compression:
    """Search how far a Bayesian network can be pruned and quantised, and write the best file that is good enough.

    Every candidate goes the whole way: pruned by a threshold of the signal-to-noise ratio, or of the magnitude as its
    rival, per weight or per channel, dead channels cut out (:func:`convert.compact`), exported, and evaluated as the
    file that ONNX Runtime runs; with ``calibration_data`` the best of them as int8 too. The thresholds start from
    shares of the weights; where ``max_drop`` lies between two of them, the search goes on in between. Among the files
    that meet all constraints, the smallest is chosen where ``max_drop`` is given, else the one with the best metric.

    Evaluate on held-out data, and keep further data for ``confirm``: the chosen file is the best of many on the data
    that chose it.

    Args:
        bnn: A fitted or trained Bayesian model. It is left untouched.
        evaluate: ``callable(model) -> float``, higher is better. It gets each file as a module that is called like the
            model itself, on the CPU, and returns the same type, a dict for example; with ``output`` it is that tensor.
            Before the search it also gets a module whose outputs mean nothing, four times, to see what chance scores.
        example_inputs: A tensor, a tuple of arguments or a mapping; latency is measured on it.
        path: Where the chosen file goes. An old file is replaced only by a verified new one.
        max_drop: Most that the metric may fall below that of the file at the posterior mean.
        max_latency_ms: Most milliseconds for one run on ``example_inputs``, one thread.
        max_size: Most bytes of the file.
        granularities: ``"weight"``, ``"channel"``, or both; channels go together as :func:`convert.channel_groups`
            finds them, where the model can be traced.
        scores: ``"snr"``, ``"magnitude"``, or both: what weights go by. One alone takes half of the time.
        calibration_data: Inputs, or a loader of batches, that fix the int8 ranges; None leaves int8 out.
        repair: A loader of inputs for :func:`convert.repair` of every pruned network. Or ``callable(network)``, called
            with every pruned torch network before it is compacted, to re-estimate BatchNorm
            (``torch.optim.swa_utils.update_bn``) or to train on; pruned weights stay pruned.
        refine: Steps between the last good and the first bad threshold; each halves the gap.
        sparse: Store mostly-zero weights as sparse tensors where that makes the file smaller.
        output: Which output of the model to export, as in :func:`convert.export_onnx`.
        progress: Called with each measured point; latencies come at the end.
        confirm: Data that the search does not see: a loader with the classes of the examples, or ``callable(model)``
            that returns a score for each example, higher is better, or one number. The best file whose drop is within
            ``max_drop`` there too is the one that is written; ``Compression.confirmed`` holds the drop, its standard
            error, and whether the bound is within the noise.
        folder: Where the files of the search stay, with a record of what was measured, so that the same call goes on
            after a break. Default: a temporary folder.

    Returns:
        The chosen file, every point and the Pareto front; it prints as a table and draws itself with ``plot()``.

    Raises:
        InvalidTypeError, InvalidValueError: A model that is not Bayesian, an argument that cannot work, or an
            ``evaluate`` that gives no number, no better one than for outputs that mean nothing, or always the same.
        ConversionError: ``evaluate``, ``repair`` or ``confirm`` failed.
        ExportError: The model cannot be written, or not be quantised although ``calibration_data`` is given.
        UnmetConstraintsError: A ConversionError: no file meets the constraints. It says how close the search came, and
            holds every point. Nothing is written.

    Example:
        >>> print(convert.compress(bnn, accuracy, x, "small.onnx", max_drop=0.01, calibration_data=loader))
    """
    check_bayesian("compress", bnn)
    constraints = _constraints(max_drop, max_latency_ms, max_size)
    check_takes("compress", "evaluate", evaluate, "model")
    if progress is not None:
        check_takes("compress", "progress", progress, "point")
    repairing = _repairing(bnn, repair)
    confirming = None if confirm is None else example_scores(confirm, output)
    check_number("compress", "refine", refine, least=0)
    granularities, scores = _names("granularities", granularities, SHARES), _names("scores", scores, SCORES)
    target = checked_target(path, "compress")
    ways = {name: _channels(bnn, example_inputs) if name == "channel" else name for name in granularities}
    rankings = {score: None if score == "snr" else prune_scores(bnn, score=score) for score in scores}
    with _kept(folder) if folder is not None else working_folder() as place:
        settings = {"repair": repair is not None, "sparse": sparse}
        record = None if folder is None else Record(place, str(posterior_fingerprint([bnn])), settings)
        files = CandidateFiles(
            *(bnn, evaluate, example_inputs, place, ways, calibration_data, repairing, sparse, output, progress),
            rankings=rankings,
            record=record,
        )
        files.measure(Candidate())
        chance = files.check_baseline(max_drop)
        if calibration_data is not None:
            files.measure(Candidate(quantize="int8"))  # what int8 cannot do is refused before the search
        for ladder in ladders(bnn, ways, rankings):
            climb(files, ladder, max_drop, int(refine))
        if calibration_data is not None:
            quantize(files, max_drop)
        files.time()
        points = tuple(files.points.values())
        chosen, confirmed = _ranked(points, constraints)[0], None
        if confirming is not None:
            chosen, confirmed = _confirmed(files, points, constraints, confirming)
        if max_drop is None:
            cures = "" if repairing else ", or repair=loader"
            warn_of_ruin(chosen.name, chosen.metric, points[0].metric, chance, cures)
        with replacing(target) as temporary:
            shutil.copyfile(files.path(chosen), temporary)
    return Compression(Path(path), chosen, points[0], points, constraints, tuple(files.notes.values()), confirmed)


@contextmanager
def _kept(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that stays, made if need be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InvalidValueError(f"compress: folder '{folder}' cannot be made ({shown(err)}); choose another.") from err
    yield Path(folder)


def _names(argument: str, given: Sequence[str], known: Collection[str]) -> list[str]:
    """What was asked for, each once."""
    names = list(dict.fromkeys([given] if isinstance(given, str) else given))
    for name in names:
        if name not in known:
            raise InvalidValueError(f"compress: {argument} must be {' or '.join(map(repr, known))}, got {name!r}.")
    return names


def _repairing(bnn: nn.Module, repair: Any) -> Callable[[nn.Module], Any] | None:
    """What repairs a pruned network in place: the user's function, or least squares on the inputs of a loader."""
    if repair is None:
        return None
    if callable(repair) or isinstance(repair, str) or not isinstance(repair, Iterable):
        check_takes("compress", "repair", repair, "network")
        return repair
    dense, loader = to_deterministic(bnn), repair

    def repaired(network: nn.Module) -> None:
        network.load_state_dict(repair_network(network, dense, loader).state_dict())

    return repaired


def _channels(bnn: nn.Module, example_inputs: Inputs) -> str | ChannelGroups:
    """Channels that go together where the graph shows them, else the channels of each layer by themselves."""
    try:
        groups = channel_groups(bnn, example_inputs)
    except ConversionError as err:
        log.info("%s", err)
        return "channel"
    return groups if groups.count else "channel"


def _constraints(max_drop: Any, max_latency_ms: Any, max_size: Any) -> Constraints:
    if max_drop is None and max_latency_ms is None and max_size is None:
        raise InvalidValueError("compress: one of max_drop, max_latency_ms and max_size must be given.")
    if max_drop is not None:
        check_number("compress", "max_drop", max_drop, least=0)
    for name, value in (("max_latency_ms", max_latency_ms), ("max_size", max_size)):
        if value is not None:
            check_number("compress", name, value, above=0)
    return Constraints(max_drop, max_latency_ms, max_size)


def _ranked(points: Sequence[Point], constraints: Constraints) -> list[Point]:
    """The points that meet the constraints, the best first, or an error that says how close the others came."""
    fitting = [point for point in points if not constraints.misses(point)]
    if not fitting:
        raise UnmetConstraintsError(constraints, points)
    if constraints.max_drop is not None:
        return sorted(fitting, key=lambda point: (point.size, point.latency_ms, point.drop))
    return sorted(fitting, key=lambda point: (-point.metric, point.size))


def _confirmed(
    files: CandidateFiles, points: Sequence[Point], constraints: Constraints, scores: ExampleScores
) -> tuple[Point, Confirmation]:
    """The best point whose drop is within the bound on other data, or an error."""
    baseline = files.scored(points[0], scores)
    refused: list[str] = []
    for point in _ranked(points, constraints):
        found = compared(baseline, files.scored(point, scores), constraints.max_drop)
        if constraints.max_drop is None or found.drop <= constraints.max_drop:
            return point, replace(found, refused=tuple(refused))
        refused.append(f"{point.name}, drop {found.drop:.4g}")
    raise UnmetConstraintsError(constraints, points, refused)
