"""Choice of the windows of an index to show for a query. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Place = tuple[str, float | None, float | None]
"""Video, and start and end of a window in seconds; for an image the end is None, for a whole video both."""


def distinct(
    place: Callable[[int], Place], rows: Iterable[int], num: int, shown: Sequence[int] = ()
) -> dict[int, Place]:
    """Return the first `num` of `rows` with their places; skip rows that show the same moment as an earlier row or a
    `shown` one."""
    kept = {row: place(row) for row in shown}
    for row in rows:
        if len(kept) == num + len(shown):
            break
        here = place(row)
        if not any(is_same_moment(here, other) for other in kept.values()):
            kept[row] = here
    return {row: here for row, here in kept.items() if row not in shown}


def is_same_moment(place: Place, other: Place) -> bool:
    """Return whether two windows of a file overlap by at least half of the shorter one."""
    (uri, start, end), (other_uri, other_start, other_end) = place, other
    if uri != other_uri:
        return False
    if start is None or end is None or other_start is None or other_end is None:
        return True
    shared = min(end, other_end) - max(start, other_start)
    return shared >= 0.5 * min(end - start, other_end - other_start) - 1e-9
