"""Ten digits and three scribbles as strokes: points that a hand passes, in a square of 100 x 100, y downwards."""

from __future__ import annotations

import numpy as np

__all__ = ["DIGITS", "SCRIBBLES", "Strokes", "by_another_hand", "smooth"]

#: Strokes of arrays of shape (points, 2).
Strokes = list[np.ndarray]

DIGITS: dict[int, list[list[tuple[int, int]]]] = {
    0: [[(52, 10), (30, 22), (24, 50), (32, 80), (52, 90), (72, 78), (77, 48), (68, 20), (52, 10)]],
    1: [[(36, 26), (54, 10), (54, 50), (54, 90)]],
    2: [[(28, 28), (40, 12), (60, 12), (70, 28), (60, 50), (40, 72), (26, 88)], [(26, 88), (50, 87), (76, 87)]],
    3: [[(28, 18), (48, 9), (68, 20), (64, 38), (46, 47), (68, 56), (72, 74), (54, 90), (26, 82)]],
    4: [[(58, 10), (40, 36), (24, 62)], [(24, 62), (52, 62), (80, 60)], [(62, 38), (61, 64), (60, 92)]],
    5: [
        [(72, 11), (52, 11), (34, 12)],
        [(34, 12), (32, 28), (30, 44)],
        [(30, 44), (52, 38), (70, 52), (70, 74), (50, 90), (26, 82)],
    ],
    6: [[(64, 10), (42, 28), (30, 56), (34, 82), (54, 90), (70, 76), (64, 58), (48, 54), (34, 66)]],
    7: [[(26, 14), (50, 13), (76, 13)], [(76, 13), (60, 44), (46, 90)]],
    8: [[(68, 22), (50, 10), (34, 22), (42, 40), (60, 54), (70, 74), (52, 90), (32, 76), (42, 54), (62, 40), (68, 22)]],
    9: [[(68, 26), (48, 12), (32, 28), (42, 46), (60, 44), (68, 26)], [(68, 26), (66, 60), (58, 90)]],
}

SCRIBBLES: list[list[list[tuple[int, int]]]] = [
    [[(10, 10), (90, 14), (12, 26), (88, 34), (10, 46), (90, 54), (12, 66), (88, 74), (10, 84), (90, 92)]],
    [[(10, 10), (90, 90)], [(90, 10), (10, 90)], [(50, 5), (50, 95)], [(5, 50), (95, 50)]],
    [[(10, 90), (10, 10), (90, 10), (90, 90), (10, 90), (90, 10)], [(10, 10), (90, 90)]],
]


def smooth(strokes: list[list[tuple[int, int]]], steps: int = 6) -> Strokes:
    """The curves of Catmull and Rom through the points, ``steps`` points for each piece."""
    found, t = [], np.linspace(0, 1, steps, endpoint=False)[:, None]
    for points in strokes:
        p = np.array([points[0], *points, points[-1]], float)
        pieces = [
            (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
            for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
        ]
        found.append(np.concatenate([*pieces, p[-1:]]))
    return found


def by_another_hand(strokes: list[list[tuple[int, int]]], rng: np.random.Generator) -> Strokes:
    """The same strokes by another hand: points moved by 3, slanted, turned, of any width, size and place."""
    turn, slant, width, size = rng.normal(0, 0.1), rng.normal(0, 0.15), rng.uniform(0.75, 1.25), rng.uniform(0.4, 0.85)
    mix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[width, slant], [0, 1]]
    moved = [[tuple(np.add(point, rng.normal(0, 3, 2))) for point in points] for points in strokes]
    place = 50 + rng.uniform(-1, 1, 2) * (1 - size) * 30
    return [((curve - 50) @ mix.T * size + place).clip(2, 98) for curve in smooth(moved)]
