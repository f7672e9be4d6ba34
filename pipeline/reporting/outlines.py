"""What an outline in an image means, in words, by how it came about; see models/finished.py for the kinds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """`half`: what an outline is around; `where`: the same as a place; `most`: where a volume's planes are laid;
    `looked`: what it shows; `about`: all that a reader of the report has to know of it."""

    half: str
    where: str
    most: str
    looked: str
    about: str


NO_PROOF = (
    "It does not explain the decision, marks no lesion, and is no evidence that the answer is right or wrong. Judge "
    "the image without it first."
)
WORDS = {
    "attention": Words(
        "half of the network's attention",
        "where half of the network's attention lay",
        "the patch with most attention",
        "where the network looked",
        "About the outlines: they enclose the fewest patches of the image that together hold half of the network's "
        "attention (attention rollout, Abnar and Zuidema 2020, mean over the seeds); attention spread evenly would "
        "give half of the image, and an outline near that tells nothing. An outline says where the network took its "
        f"information from. {NO_PROOF}",
    ),
    "queries": Words(
        "half of the network's attention",
        "where half of the network's attention lay",
        "the patch with most attention",
        "where the network looked",
        "About the outlines: they enclose the fewest patches of the image that together hold half of the attention "
        "with which the network's learned queries read the patches (efficient probing, Psomas et al. 2026, mean over "
        "the queries and the seeds); attention spread evenly would give half of the image, and an outline near that "
        "tells nothing. A patch stands for what the encoder made of it, which other patches enter, too. An outline "
        f"says where the network took its information from. {NO_PROOF}",
    ),
    "mask": Words(
        "what the model marked",
        "what the model marked",
        "what the model marked",
        "which pixels the model holds for a structure that it was trained to find",
        f"About the outlines: they enclose the pixels that the model holds for a structure. {NO_PROOF}",
    ),
    "activation": Words(
        "half of what raised the network's score",
        "where half of what raised the network's score lay",
        "the place that raised the score most",
        "what raised the score",
        "About the outlines: they enclose the smallest area of the image that holds half of what raised the network's "
        "score (features of its first stage times the gradient of the score, HiResCAM, Draelos and Carin 2020, mean "
        "over the seeds); spread evenly it would be half of the image, and an outline near that tells nothing. An "
        f"outline says which places raised the score; what lowered it is not shown. {NO_PROOF}",
    ),
}
