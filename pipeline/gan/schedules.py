"""What changes while training, as pure functions of images seen; so a resumed run needs no schedule state."""

from __future__ import annotations

import math


def linear_fall(images_seen: int, total_images: int, start: float) -> float:
    """A factor in [0, 1]: 1 until the share `start` of the run, then straight down to 0 at its end."""
    share = images_seen / total_images
    return 1.0 if share <= start else max(0.0, (1.0 - share) / (1.0 - start))


def cosine(images_seen: int, total_images: int, begin: float, end: float, until: float) -> float:
    """From `begin` along half a cosine to `end` at the share `until` (above 0) of the run, and `end` from then on.

    Huang et al. 2024 (R3GAN), appendix: the schedule of its learning rate, β2, γ and augmentation.
    """
    share = min(1.0, images_seen / (until * total_images))
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def ema_decay(images_seen: int, batch_images: int, halflife_images: float, ramp: float) -> float:
    """The weight of the old average in one step: 0.5 ** (batch / half-life), Karras et al. 2020 (StyleGAN2-ADA).

    While the run is young its half-life is `ramp` times the images seen, so that the first weights are soon forgotten.
    """
    halflife = min(halflife_images, images_seen * ramp)
    return 0.5 ** (batch_images / halflife) if halflife > 0 else 0.0


def growth(images_seen: int, total_images: int, last: int, until: float) -> float:
    """A level from 0 to `last`, reached at the share `until` of the run: whole while it stays, in between as it fades.

    Every level stays as long as the next takes to fade in. Karras et al. 2018 (progressive growing), appendix A.
    """
    stays_and_fades = 2 * last * images_seen / (until * total_images)
    return min(float(last), stays_and_fades // 2 + max(0.0, stays_and_fades % 2 - 1))
