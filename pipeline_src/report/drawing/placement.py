"""Where the labels of points go so that they hide neither points nor each other.

Each label tries places around its point, the nearest first, and takes the one that
overlaps least with what is there: all points, the labels before it, the panel's edge.
Labels of crowded points choose first, since the others have more places left. The same
points give the same places. All lengths are in inches.
"""

import numpy as np

_ANGLES = np.radians([0, 180, 90, 270, 45, 135, 315, 225])
_RINGS = np.linspace(0.09, 0.9, 10)  # distances from the point to the label's edge
_POINT = 0.05  # half the side of the square that a marker covers
_FAR = 1e-3  # square inches of overlap that an inch of distance is worth


def place_labels(
    x: np.ndarray,  # (num_points,) 0 .. panel_width
    y: np.ndarray,  # (num_points,) 0 .. panel_height
    widths: np.ndarray,  # (num_points,) of the labels
    height: float,  # of every label
    panel: tuple[float, float],  # width and height
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the labels, (num_points,) each."""
    sizes = np.column_stack([widths, np.full(len(x), height)])
    points = np.column_stack([x, y])
    boxes = [np.concatenate([point - _POINT, point + _POINT]) for point in points]
    centres = points.copy()
    for i in _crowded_first(points):
        candidates = points[i] + _offsets(widths[i], height)  # (num_candidates, 2)
        low, high = candidates - sizes[i] / 2, candidates + sizes[i] / 2
        outside = np.maximum(-low, 0) + np.maximum(high - np.asarray(panel), 0)
        cost = outside.sum(axis=1) + _FAR * np.repeat(_RINGS, len(_ANGLES))
        for box in boxes:
            overlap = np.minimum(high, box[2:]) - np.maximum(low, box[:2])
            cost += np.maximum(overlap, 0).prod(axis=1)
        best = int(cost.argmin())
        centres[i] = candidates[best]
        boxes.append(np.concatenate([low[best], high[best]]))
    return centres[:, 0], centres[:, 1]


def _offsets(width: float, height: float) -> np.ndarray:
    """From the point to the label's centre, ring by ring, (num_candidates, 2)."""
    direction = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    half = np.array([width, height]) / 2
    return np.concatenate([direction * (half + ring) for ring in _RINGS])


def _crowded_first(points: np.ndarray) -> np.ndarray:
    """Order of the points by the sum of inverse distances to the others."""
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    return np.argsort(-(1 / np.maximum(gaps, _POINT)).sum(axis=1), kind="stable")
