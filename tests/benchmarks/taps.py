"""What does tapping a student's features cost in its forward pass, over ten families?

Compared: `model.forward_intermediates(x, indices)` and `model.forward_head(final)`, with the features of all stages
kept, which is what a student does before its projectors, over the plain `model(x)`. Both on the same model in train
mode with gradients, in one process, with one thread. The projectors' own work is a choice of the search and not in it.

Pairs are interleaved, their order alternates, and a family's figure is the median of the pairs' ratios, minus 1.
"""

import statistics
import time

FAMILIES = (
    "resnet18", "mobilenetv2_100", "convnext_atto", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "mixer_s32_224", "resmlp_12_224", "poolformer_s12", "pvt_v2_b0", "efficientvit_b0",
)  # fmt: skip
SIZE, BATCH, CLASSES = 96, 2, 10
PAIRS, WARM_UP = 61, 5


def measure() -> dict[str, float]:
    """Times the pairs of each family."""
    import torch

    torch.set_num_threads(1)
    figures = {name.partition("_patch")[0].removesuffix("_224"): _overhead(name) for name in FAMILIES}
    return {"max_overhead": max(figures.values()), **figures}


def _overhead(name: str) -> float:
    import torch

    from trainables.build import build_model
    from trainables.student import Student, available_stages

    torch.manual_seed(0)
    model = build_model(name, num_classes=CLASSES, img_size=SIZE)
    indices = Student(model, CLASSES, SIZE, available_stages(model)).indices
    images = torch.randn(BATCH, 3, SIZE, SIZE)

    def tapped():
        final, features = model.forward_intermediates(images, indices=indices)
        return model.forward_head(final), features

    def plain():
        return model(images)

    def seconds(forward) -> float:
        begun = time.perf_counter()
        kept = forward()  # freed after the clock has stopped
        taken = time.perf_counter() - begun
        del kept
        return taken

    ratios = []
    for number in range(WARM_UP + PAIRS):
        order = (plain, tapped) if number % 2 else (tapped, plain)
        taken = {forward: seconds(forward) for forward in order}
        ratios.append(taken[tapped] / taken[plain])
    overhead = statistics.median(ratios[WARM_UP:]) - 1
    print(f"  {name:<32} {100 * overhead:+6.2f} %", flush=True)
    return overhead
