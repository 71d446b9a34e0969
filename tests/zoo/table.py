"""The table of a run, by library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .result import Result


def render(results: Sequence[Result]) -> str:
    """Markdown: one row per library, then what failed and what needs a reason."""
    lines = [
        "| library | models | families | pass | posteriors | one by one | eligible weights | Bayesian | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for library in sorted({result.key.split("/")[0] for result in results}):
        lines.append(_row(library, [r for r in results if r.key.startswith(f"{library}/")]))
    failed = [result for result in results if not result.ok]
    if failed:
        lines += ["", "Failed:", *(f"- {r.key}: {c}: {m.splitlines()[0]}" for r in failed for c, m in r.failed.items())]
    excused = [result for result in results if result.excused]
    if excused:
        lines += ["", "Listed with a reason:", *(f"- {r.key}: {c}: {m}" for r in excused for c, m in r.excused.items())]
    return "\n".join(lines)


def thin_libraries(results: Sequence[Result], share: float = 0.99) -> list[str]:
    """Libraries in which less than this share of the eligible weights is Bayesian."""
    names = sorted({result.key.split("/")[0] for result in results})
    return [
        name
        for name in names
        if _total([r for r in results if r.key.startswith(f"{name}/")], "bayesian")
        < share * _total([r for r in results if r.key.startswith(f"{name}/")], "eligible")
    ]


def _row(library: str, results: Sequence[Result]) -> str:
    eligible = _total(results, "eligible")
    share = f"{_total(results, 'bayesian') / eligible:.2%}" if eligible else "-"
    cells = (
        library,
        len(results),
        len({result.family for result in results}),
        sum(result.ok for result in results),
        _total(results, "posteriors"),
        _total(results, "moved_one_by_one"),
        f"{eligible / 1e6:.1f} M",
        share,
        f"{sum(result.facts.get('seconds', 0) for result in results):.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _total(results: Iterable[Result], fact: str) -> int:
    return sum(result.facts.get(fact, 0) for result in results)
