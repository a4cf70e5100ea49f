"""Pareto fronts and how much they cover. All points are minimised; negate what is to be maximised."""

from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b))


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by ascending first coordinate; of equal points the first."""
    front: list[int] = []
    # In lexicographic order no point is dominated by a later one.
    for index in sorted(range(len(points)), key=lambda i: (tuple(points[i]), i)):
        point = tuple(points[index])
        if not any(tuple(points[i]) == point or dominates(points[i], point) for i in front):
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Exact volume of the region that `points` dominate and that dominates `reference`.

    By slicing along the last coordinate: between two consecutive values of it the region is a prism whose base is the
    hypervolume, one dimension lower, of the points up to there. Two objectives cost O(n² log n).
    """
    inside = [tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    inside.sort(key=lambda p: p[-1])
    heights = [*(p[-1] for p in inside), reference[-1]]
    return sum(
        hypervolume([p[:-1] for p in inside[: i + 1]], reference[:-1]) * (heights[i + 1] - heights[i])
        for i in range(len(inside))
        if heights[i + 1] > heights[i]
    )
