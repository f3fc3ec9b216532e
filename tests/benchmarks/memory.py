"""Does a worker that serves many trials grow?

50 trials of changing stages, eps and distillers in one process, as a lane runs them, each with data, teacher and store
of the process; `growth_mb` is the resident size after the last over that after the tenth, `growth_gpu_mb` that of the
device's allocated memory, where there is one.
"""

import gc
import random
import tempfile
from pathlib import Path

TRIALS, SETTLED = 50, 10
DISTILLERS = ("ofa", "ofa", "kd", "dist", "dkd", "rkd", "cc", "rsd", "fitnet", "none")


def measure() -> dict[str, float]:
    """Runs the trials."""
    import psutil
    import torch

    from trainables.assets import Assets
    from trainables.checkpoint import save_weights
    from trainables.config import TrialConfig
    from trainables.context import RunContext
    from trainables.loop import run_trial
    from trainables.teacher import build_teacher

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    process, draw, sizes, allocated = psutil.Process(), random.Random(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        assets = Assets(device, Path(folder, "teacher.safetensors"), str(Path(folder, "store")))
        for number in range(TRIALS):
            stages = [stage for stage in (1, 2, 3, 4) if draw.random() < 0.5] or [4]
            config = TrialConfig(
                data="digits", img_size=32, max_images=128, teacher="test_resnet", teacher_source="fit",
                student="mixer_nano", epochs=2, batch_size=32, stages=stages, eps=draw.uniform(0.8, 2.0),
                distiller=DISTILLERS[number % len(DISTILLERS)], gt_loss_weight=1.0,
            )  # fmt: skip
            if number == 0:
                save_weights(build_teacher(config, 10), assets.teacher_weights)
            run_trial(config, assets, RunContext(Path(folder, str(number)), lambda _: True, device=device))
            gc.collect()
            sizes.append(process.memory_info().rss / 1e6)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                allocated.append(torch.cuda.memory_allocated() / 1e6)
            if number % 10 == 9:
                print(f"  after {number + 1} trials: {sizes[-1]:.0f} MB", flush=True)
    gpu = {"growth_gpu_mb": allocated[-1] - allocated[SETTLED - 1]} if allocated else {}
    return {"growth_mb": sizes[-1] - sizes[SETTLED - 1], "resident_mb": sizes[-1], **gpu}
