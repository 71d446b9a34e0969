"""Every check on one model, each a function that raises AssertionError with the finding.

The oracles are black boxes: a bit-for-bit comparison with the source, a plain copy of the source with the held sample
written into it by hand, gradients of the source. Nothing here asks the library whether it did well.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable

from ..entries import Entry
from ..fingerprint import Fingerprint
from ..forward import run, seed_all
from ..perturbation import enliven
from ..result import Result
from ..spread import SPREAD, spread_agrees
from ..subject import Subject
from .conversion import (
    conversion_succeeds,
    coverage_is_high,
    mean_is_bit_equal,
    plan_accounts_for_everything,
    posteriors_match_parameters,
)
from .gradients import gradients_arrive
from .noise import (
    check_noise_agrees,
    every_posterior_moves_the_output,
    held_sample_is_used_everywhere,
    train_mode_is_noisy,
)
from .returning import checkpoints_load, deepcopy_and_pickle_agree, source_is_untouched, way_back_is_exact
from .source import source_is_sound

CHECKS: list[Callable[[Subject], None]] = [
    mean_is_bit_equal,
    posteriors_match_parameters,
    plan_accounts_for_everything,
    coverage_is_high,
    held_sample_is_used_everywhere,
    every_posterior_moves_the_output,
    check_noise_agrees,
    train_mode_is_noisy,
    gradients_arrive,
    deepcopy_and_pickle_agree,
    checkpoints_load,
    way_back_is_exact,
]


def check_entry(
    entry: Entry, result: Result, budget: float = 40.0, source_only: bool = False, samples: int = 0
) -> None:
    """Build the model and run every check, writing into ``result``.

    Args:
        entry: What to build.
        result: Gains passed and failed checks and facts.
        budget: Seconds for moving posteriors one at a time.
        source_only: Only see whether the entry itself is sound.
        samples: For the models in :data:`tests.zoo.spread.SPREAD`, draws with which to compare the spread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = prepare(entry, result, budget)
        _attempt(entry, subject, source_is_sound)
        if source_only or result.failed:
            return
        before = Fingerprint(subject.source)
        if not _attempt(entry, subject, conversion_succeeds):
            return
        for check in CHECKS:
            _attempt(entry, subject, check)
        if samples and entry.key in SPREAD:
            _attempt(entry, subject, lambda s: spread_agrees(s, samples), "spread_agrees")
        _attempt(entry, subject, lambda s: source_is_untouched(s, before), "source_is_untouched")


def prepare(entry: Entry, result: Result, budget: float) -> Subject:
    """Build the entry with random weights that all matter, in eval mode."""
    seed_all(0)
    example = entry.build()
    model = example.model
    model.eval()
    enliven(model, lambda: run(model, example.inputs))
    return Subject(model, example, result, budget)


def _attempt(entry: Entry, subject: Subject, check: Callable[[Subject], None], name: str = "") -> bool:
    """Run one check and file its outcome."""
    name, result, start = name or check.__name__, subject.result, time.process_time()
    try:
        check(subject)
    except AssertionError as err:
        message = str(err)
    except Exception as err:
        frames = [f"{f.filename.rsplit('/', 2)[-1]}:{f.lineno}" for f in traceback.extract_tb(err.__traceback__)][-4:]
        message = f"{type(err).__name__}: {err}"[:400] + f" [{' '.join(frames)}]"
    else:
        message = ""
    result.facts.setdefault("check_seconds", {})[name] = round(time.process_time() - start, 1)
    excuse = entry.known.get(name)
    if message and excuse:
        result.excused[name] = excuse
    elif message:
        result.failed[name] = message
    elif excuse:
        result.failed[name] = f"passes, but is listed with: {excuse}"
    else:
        result.passed.append(name)
    return not message
