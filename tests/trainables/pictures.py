"""A second way to a model's answers: images read and normalised by hand, and models that are right in a moment."""

import numpy as np
import torch
from PIL import Image


def raw(split):
    """A split's images, resized whole, as pixels in 0 to 1, and their classes."""
    pictures = [split.image(at).resize((16, 16), Image.Resampling.BILINEAR) for at in range(len(split))]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255, torch.as_tensor(split.targets)


def normalised(images, model):
    """Pixels in a model's own normalisation."""
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (images - mean) / std


@torch.no_grad()
def with_fitted_head(model, split):
    """A random model whose last layer is fitted by least squares: right about most digits, not about all."""
    images, target = raw(split)
    features = model.eval().forward_head(model.forward_features(normalised(images, model)), pre_logits=True)
    features = torch.cat([features, torch.ones(len(target), 1)], dim=1)
    solved = torch.linalg.lstsq(features, torch.nn.functional.one_hot(target).float()).solution
    model.head.weight.copy_(solved[:-1].T)
    model.head.bias.copy_(solved[-1])
    return model
