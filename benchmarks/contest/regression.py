"""UCI tables: every method answers once for each split, and is judged over all of them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from rounds import print_table
from table_methods import methods
from tables import Split, load_split

ROWS = (
    "constant noise", "Gaussian head", "MC dropout", "deep ensemble of 5", "laplace-torch, last layer",
    "ours, training-free", "ours, fine-tuned",
)  # fmt: skip


def judge_tables(folder: Path, tables: list[str], cache: Path, splits: int) -> dict[str, Any]:
    """Print a table for each data set, and the differences in NLL that count."""
    found, figures = methods(), {}
    for table in tables:
        answers = {name: [] for name in ROWS if name in found}
        for index in range(splits):
            split = load_split(folder, table, index)
            for name, replies in answers.items():
                replies.append(answer(table, name, found[name], cache, split, index))
        print(f"\n{table}, {splits} splits, {sum(len(r['nll']) for r in answers['constant noise'])} test rows\n")
        rows = []
        for name, replies in answers.items():
            nll = [float(reply["nll"].mean()) for reply in replies]
            inside = torch.cat([reply["inside"] for reply in replies]).double()
            error = math.sqrt(0.9 * 0.1 / len(inside))
            figures[f"{table}, {name}"] = {
                "nll": statistics.mean(nll),
                "rmse": statistics.mean(reply["rmse"] for reply in replies),
                "coverage": 100 * float(inside.mean()),
                "coverage within": 100 * (2 * error) + 1,
                "nll of splits": nll,
            }
            row = figures[f"{table}, {name}"]
            rows.append([name, f"{row['rmse']:.3f}", f"{row['nll']:.3f}"])
            rows[-1] += [f"{row['coverage']:.1f}", replies[0]["cost"], replies[0]["settings"]]
        print_table(["method", "RMSE", "NLL", "in the 90 % interval, %", "forwards", "settings"], rows)
        print(f"\n90 % within {row['coverage within']:.1f} points is asked for. Differences in NLL over the splits:\n")
        _print_differences({name: figures[f"{table}, {name}"]["nll of splits"] for name in answers})
    return figures


def answer(table: str, name: str, method: Any, cache: Path, split: Split, index: int) -> dict[str, Any]:
    """What a method says about the test rows, in the table's own unit, from the cache where it spoke before."""
    path = cache / "answers" / f"{table}-{name.replace(' ', '_')}-split{index}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    reply = method(split, index)
    x, y = split.test
    mixture = reply.model(x)
    below = mixture.cdf(y)
    found = {
        "nll": mixture.nll(y) + math.log(split.unit),
        "rmse": split.unit * float((mixture.means.mean(0) - y).square().mean().sqrt()),
        "inside": (below > 0.05) & (below < 0.95),
        "settings": reply.settings,
        "cost": reply.cost,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def _print_differences(nll: dict[str, list[float]]) -> None:
    rows = []
    for ours in (name for name in nll if name.startswith("ours")):
        for other in ("constant noise", "MC dropout"):
            gaps = [mine - its for mine, its in zip(nll[ours], nll[other], strict=True)]
            error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
            rows.append([f"{ours} - {other}", f"{statistics.mean(gaps):+.3f} ± {error:.3f}"])
    print_table(["difference", "NLL"], rows)
