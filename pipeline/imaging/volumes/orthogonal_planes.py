"""A volume as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAP = 1


def three_planes(volume: np.ndarray, centre: Sequence[int] | None = None) -> np.ndarray:
    """Return one picture of (D, H, W): coronal and sagittal plane above the axial one, each through voxel `centre`.

    `centre` is the middle unless given. Indices of `volume` rise towards superior, anterior and right. The picture has
    superior (axial plane: anterior) at the top and the patient's right (sagittal plane: anterior) on the left, as
    radiologists read. The fourth corner and the gaps have the volume's lowest value. Shape: (D + H + 4 GAP,
    W + H + 4 GAP). Voxels are drawn as squares.
    """
    shown = volume[::-1, ::-1, ::-1]
    if centre is None:
        depth, height, width = (side // 2 for side in shown.shape)
    else:
        depth, height, width = (side - 1 - at for side, at in zip(shown.shape, centre, strict=True))
    lowest = volume.min()
    corner = np.full((shown.shape[1],) * 2, lowest, volume.dtype)
    planes = [[shown[:, height], shown[:, :, width]], [shown[depth], corner]]
    return np.block([[np.pad(plane, GAP, constant_values=lowest) for plane in row] for row in planes])
