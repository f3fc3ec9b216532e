"""A part of timm's registry, a model for each kind of trouble; the whole of it: tests/benchmarks/run.py registry."""

import pytest
import timm
import torch

from tests.benchmarks.registry import makes_a_step, used_both_ways
from tests.benchmarks.shapes_only import ShapesOnly
from trainables import build
from trainables.build import build_model, pooled_embedding

KINDS = [
    "repghostnet_050",  # the classifier sees other channels than the last feature has
    "crossvit_9_240",  # two branches: lists of final features and of classifiers, two resolutions
    "coat_tiny",  # a list of final features, no size but its own
    "efficientvim_m1",  # three stages, a classifier for each
    "efficientformer_l1",  # two heads, one size
    "deit_tiny_distilled_patch16_224",  # two class tokens
    "volo_d1_224",  # two resolutions
    "halonet26t",  # no size below its own
    "swin_tiny_patch4_window7_224",  # channels last
    "vit_base_patch16_siglip_224",  # attention pools the tokens
]


@pytest.mark.parametrize("name", KINDS)
def test_as_student_and_teacher_at_its_own_size(name):
    with ShapesOnly():
        assert used_both_ways(name, timm.get_pretrained_cfg(name).input_size[-1], "meta") > 1e6


@pytest.mark.parametrize("name", ["repghostnet_050", "crossvit_tiny_240", "deit_tiny_distilled_patch16_224"])
def test_a_real_step_gives_every_parameter_a_finite_gradient(name):
    assert makes_a_step(name)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "coat_tiny", "crossvit_tiny_240"])
def test_the_embedding_is_what_the_classifier_sees(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, img_size=64).eval()
    final, _ = model.forward_intermediates(torch.randn(2, 3, 64, 64))
    embedding, heads = pooled_embedding(model, final), model.get_classifier()
    heads = heads if isinstance(heads, torch.nn.ModuleList) else [heads]
    parts = embedding.split([head.in_features for head in heads], dim=1)  # of branches, one after the other
    logits = torch.stack([head(part) for head, part in zip(heads, parts, strict=True)]).mean(0)
    torch.testing.assert_close(logits, model.forward_head(final))


def test_the_sweep_sees_an_embedding_of_another_shape(monkeypatch):
    monkeypatch.setattr(build, "pooled_embedding", lambda model, final: final)
    with pytest.raises(AssertionError, match="embedding"):
        used_both_ways("test_resnet", 64, "cpu")
