"""CRD: contrastive representation distillation (Tian et al., ICLR 2020, arXiv 1910.10699)."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.losses.softened import full_precision

LEAST = 1e-7  # keeps logarithms finite, the authors'


class Contrast(nn.Module):
    """Embeds both sides, contrasts each image with others from a memory bank, and updates the bank.

    The bank holds both embeddings of every training image: 2 * N * dim floats, for ImageNet-1K and 128 dimensions
    1.3 GB. It is shared out over the workers, image i to worker i mod K, so each holds its part only; rows travel where
    they are needed. Negatives are drawn once a step for the whole batch (the authors draw them for each image anew,
    which takes B times the memory), with repetition as theirs are, and images of an anchor's own class are left out.
    Where there are no more images than negatives, each serves once. K workers draw the same negatives as one, and give
    the same losses.

    Args:
        student_dim, teacher_dim: widths of the embeddings.
        classes: [N] int64, the class of each training image.
        dim: the common width.
        negatives: how many are drawn a step.
        temperature: divides the cosines.
        momentum: the bank's old share in an update.
        rank, world_size: as in torch.distributed.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        classes: Tensor,
        *,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__()
        self.student, self.teacher = nn.Linear(student_dim, dim), nn.Linear(teacher_dim, dim)
        self.dim, self.negatives, self.temperature, self.momentum = dim, negatives, temperature, momentum
        self.rank, self.world_size = rank, world_size
        self.register_buffer("scales", torch.zeros(2))  # the paper's Z of both directions, from the first batch
        self._seed = torch.initial_seed()
        # No buffers: DistributedDataParallel would give rank 0's to all.
        self._classes = classes.clone()
        bound = 1 / math.sqrt(dim / 3)
        whole = torch.empty(len(classes), 2 * dim).uniform_(-bound, bound)  # on all workers alike
        self._bank = whole[rank::world_size].clone() if world_size > 1 else whole

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, classes: Tensor, number: int) -> Tensor:
        """The loss of both directions, a scalar float32: -sum of eq. 18, the batch's mean.

        Args:
            student, teacher: [B, student_dim] and [B, teacher_dim] embeddings of this worker's images.
            index: [B], their places in the training split.
            classes: [B], their classes.
            number: the step's, which decides the negatives; the same on all workers.
        """
        with full_precision(student):
            self._bank, self._classes = self._bank.to(student.device), self._classes.to(student.device)
            ours = F.normalize(self.student(student.float()), dim=1)
            theirs = F.normalize(self.teacher(teacher.detach().float()), dim=1)
            everyone = self._gathered(index)
            positive = self._rows(everyone)[self.rank * len(index) : (self.rank + 1) * len(index)]
            drawn = self._drawn(number).to(student.device)
            negative = self._rows(drawn)
            allowed = self._classes[drawn] != classes.unsqueeze(1)
            loss = sum(
                self._direction(side, anchor, memory(positive), memory(negative), allowed)
                for side, (anchor, memory) in enumerate(((ours, self._theirs), (theirs, self._ours)))
            )
            self._update(everyone, torch.cat([ours, theirs], dim=1).detach())
            return loss

    def shard(self) -> Tensor:
        """This worker's part of the bank, [ceil or floor of N / K, 2 * dim], for a checkpoint."""
        return self._bank.cpu()

    def load_shards(self, shards: list[Tensor]) -> None:
        """Takes the parts of all workers that wrote the checkpoint, in rank order; their number may differ."""
        whole = torch.empty(len(self._classes), 2 * self.dim)
        for rank, shard in enumerate(shards):
            whole[rank :: len(shards)] = shard.cpu()
        self._bank = whole[self.rank :: self.world_size].clone().to(self._bank.device)

    def _ours(self, rows: Tensor) -> Tensor:
        return rows[:, : self.dim]

    def _theirs(self, rows: Tensor) -> Tensor:
        return rows[:, self.dim :]

    def _direction(self, side: int, anchor: Tensor, positive: Tensor, negative: Tensor, allowed: Tensor) -> Tensor:
        near = ((anchor * positive).sum(dim=1) / self.temperature).exp()
        far = (anchor @ negative.T / self.temperature).exp()
        if self.scales[side] == 0:
            self._set_scale(side, near.detach(), far.detach() * allowed, allowed)
        scale = self.scales[side].clone()  # the other side's is set in place after this one's use
        near, far = near / scale, far / scale
        noise = allowed.sum(dim=1) / len(self._classes)  # m times the uniform chance of an image
        is_near = near / (near + noise + LEAST)
        is_far = noise.unsqueeze(1) / (far + noise.unsqueeze(1) + LEAST)
        is_far = torch.where(allowed, is_far, 1.0)
        return -(is_near.log() + is_far.log().sum(dim=1)).mean()

    def _set_scale(self, side: int, near: Tensor, far: Tensor, allowed: Tensor) -> None:
        sums = torch.stack(
            [near.sum() + far.sum(), torch.tensor(float(near.numel()), device=near.device) + allowed.sum()]
        )
        if self.world_size > 1:
            dist.all_reduce(sums)
        self.scales[side] = sums[0] / sums[1] * len(self._classes)

    def _drawn(self, number: int) -> Tensor:
        images = len(self._classes)
        if images <= self.negatives:
            return torch.arange(images)
        generator = torch.Generator().manual_seed((self._seed + 1_000_003 * number) % 2**63)
        return torch.randint(images, (self.negatives,), generator=generator)

    def _gathered(self, values: Tensor) -> Tensor:
        """The rows of all workers, in rank order."""
        if self.world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def _rows(self, images: Tensor) -> Tensor:
        """The bank's rows of the same images on all workers: [n, 2 * dim]."""
        if self.world_size == 1:
            return self._bank[images]
        mine = images % self.world_size == self.rank
        rows = torch.zeros(len(images), 2 * self.dim, device=images.device)
        rows[mine] = self._bank[images[mine] // self.world_size]
        dist.all_reduce(rows)
        return rows

    def _update(self, images: Tensor, embeddings: Tensor) -> None:
        embeddings = self._gathered(embeddings)
        mine = images % self.world_size == self.rank
        places = images[mine] // self.world_size
        blend = self.momentum * self._bank[places] + (1 - self.momentum) * embeddings[mine]
        ours, theirs = F.normalize(self._ours(blend), dim=1), F.normalize(self._theirs(blend), dim=1)
        self._bank[places] = torch.cat([ours, theirs], dim=1)
