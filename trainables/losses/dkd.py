"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.losses.softened import full_precision, log_probabilities


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """T² (alpha TCKD + beta NCKD): the paper's eq. 7, each divergence averaged over the batch.

    TCKD is KL(teacher || student) between the target and all other classes together; NCKD is KL(teacher || student)
    among the other classes. alpha = 1 with beta = 1 - p_t,target would be classic KD.

    Args:
        student_logits: [B, C], C > 1, any floating type.
        teacher_logits: [B, C], any floating type; gets no gradient.
        target: [B] class indices.
        alpha, beta: weights of the two parts.
        temperature: softens both sides; a scalar tensor gets a gradient.

    Returns:
        Scalar float32.
    """
    with full_precision(student_logits):
        target = target.unsqueeze(1)
        place = torch.arange(student_logits.shape[1] - 1, device=target.device)
        elsewhere = place + (place >= target)  # [B, C - 1], the other classes; a mask would wait for the device
        sides = []
        for logits in (student_logits.float(), teacher_logits.detach().float()):
            logs = log_probabilities(logits, temperature)
            others = logits.gather(1, elsewhere)
            rest = logs.gather(1, elsewhere).logsumexp(dim=1, keepdim=True)
            # not log(1 - p), which loses all digits where p is near 1
            binary = (logs.gather(1, target), rest)
            sides.append((binary, log_probabilities(others, temperature)))
        (student, student_others), (teacher, teacher_others) = sides
        target_part = sum((t.exp() * (t - s)).sum() for s, t in zip(student, teacher, strict=True)) / len(target)
        other_part = F.kl_div(student_others, teacher_others, log_target=True, reduction="batchmean")
        return temperature**2 * (alpha * target_part + beta * other_part)
