"""Conditioning against its equations."""

from __future__ import annotations

import torch

from pipeline.gan.layers import LabelJoin, ProjectionScore


def test_projection_is_the_linear_score_and_the_product_with_the_class_vector() -> None:
    score = ProjectionScore(5, classes=3).double()
    features, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    assert score.embedding is not None
    for i, label in enumerate(labels):
        vector = score.linear.weight[0] + score.embedding.weight[label]
        torch.testing.assert_close(score(features, labels)[i], vector @ features[i] + score.linear.bias[0])


def test_a_label_is_joined_as_its_embedding() -> None:
    join = LabelJoin(5, classes=3, embedding_size=2)
    joined = join(torch.zeros(4, 5), torch.tensor([2, 0, 2, 1]))
    assert joined.shape == (4, join.size) == (4, 7)
    assert torch.equal(joined[0], joined[2])
    assert not torch.equal(joined[0], joined[1])


def test_without_classes_labels_change_nothing() -> None:
    none = torch.full((4,), -1)
    vectors = torch.randn(4, 5)
    assert torch.equal(LabelJoin(5, classes=0, embedding_size=2)(vectors, none), vectors)
    assert ProjectionScore(5, classes=0)(vectors, none).shape == (4,)
