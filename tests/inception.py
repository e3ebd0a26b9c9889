"""Weights of Inception that nobody has to download: as quick and as large as the true ones, and of no other use."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch


def write_random_weights(path: Path) -> None:
    """A file as torch-fidelity reads it. He's initialization keeps the scale of features from layer to layer."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.object(theirs, "load_state_dict_from_url", return_value={}),
        mock.patch.object(theirs.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        torch.manual_seed(0)
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["64"])
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
