"""The arms of the comparison, as data: what each is, and what it needs. Nothing here needs torch.

The settings take their names and axes from here, and `finetune` says in its summary what each arm is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArmKind:
    """An arm: its name in settings and tables, what a reader calls it, and what it is.

    A `network` is trained by gradient steps, so that seeds differ; other arms have one optimum. `axes` are those of the
    images it can take.
    """

    name: str
    title: str
    description: str
    network: bool
    axes: tuple[int, ...] = (2, 3)


ARMS = {
    arm.name: arm
    for arm in (
        ArmKind("mae", "pretrained (masked autoencoder)", "encoder pretrained as a masked autoencoder", network=True),
        ArmKind(
            "scratch",
            "same network, from scratch",
            "the same network, all layers trained from random weights",
            network=True,
        ),
        ArmKind(
            "imported",
            "same network, from public weights",
            "the same network, started from public weights that were trained elsewhere",
            network=True,
        ),
        ArmKind(
            "linear_probe",
            "pretrained, frozen (linear probe)",
            "logistic regression on the frozen pretrained encoder's features",
            network=False,
        ),
        ArmKind(
            "hog",
            "classical baseline (HOG, logistic regression)",
            "logistic regression on histograms of oriented gradients, no network",
            network=False,
            axes=(2,),
        ),
    )
}
NAMES = tuple(ARMS)
NETWORKS = tuple(name for name, arm in ARMS.items() if arm.network)
