"""Is there something to find at the embedded scale? Trials of `spaces/vit_to_mlp.py` at full length, without Ray.

Every figure is holdout accuracy in percent. Configurations share one seed and differ in OFA-KD's hyperparameters only;
seeds repeat one configuration, the best of those drawn.
"""

import statistics
import tempfile
from pathlib import Path

SEEDS, CONFIGURATIONS = 4, 10


def measure() -> dict[str, float]:
    """Trains the student alone and the best configuration over seeds, and configurations drawn from the space."""
    import torch

    from search.preflight import preflight
    from search.settings import resolve
    from search.space_file import load_space
    from trainables.assets import Assets
    from trainables.config import TrialConfig
    from trainables.context import RunContext
    from trainables.teacher import WEIGHTS
    from trainables.teacher_job import prepare_teacher

    torch.set_num_threads(1)
    space = Path(__file__).parents[2] / "spaces" / "vit_to_mlp.py"
    study = load_space(str(space))
    plan, _ = preflight(study, resolve(study, {"name": "testbed", "space": str(space)}, []))
    assets = Assets()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        context, kept = RunContext(folder / "fitting", lambda _: True), folder / "teacher"
        teacher = prepare_teacher(plan.base, plan.teacher_recipe, assets, context, kept)
        assets.teacher_weights = kept / WEIGHTS
        trained = 0

        def accuracy(config: TrialConfig) -> float:
            nonlocal trained
            from trainables.loop import run_trial

            trained += 1
            reports: list[float] = []
            context = RunContext(folder / str(trained), lambda metrics: reports.append(metrics["val/top1"]) or True)
            run_trial(config, assets, context)
            print(f"  {trained:>3}  {reports[-1]:.2f}", flush=True)
            return reports[-1]

        def over_seeds(config: TrialConfig) -> list[float]:
            return [accuracy(config.model_copy(update={"seed": seed})) for seed in range(SEEDS)]

        print("the student alone, over seeds")
        scratch = over_seeds(plan.baselines["scratch"])
        print("the student alone without mixing, which suits it better, over seeds")
        unmixed = over_seeds(plan.baselines["scratch"].model_copy(update={"mixup": 0.0}))
        print("classic KD, over seeds")
        kd = over_seeds(plan.baselines["kd"])
        print("configurations drawn from the space")
        drawn = [TrialConfig(**plan.compose(fields)) for _, fields in plan.space.samples(CONFIGURATIONS, seed=1)]
        scores = [accuracy(config) for config in drawn]
        best = drawn[scores.index(max(scores))]
        print(f"the best of them, over seeds: eps {best.eps}, T {best.temperature:.2f}, stages {best.stages}")
        repeated = over_seeds(best)
    return {
        "teacher": teacher["top1"],
        "scratch_mean": statistics.mean(scratch),
        "scratch_std": statistics.stdev(scratch),
        "scratch_unmixed_mean": statistics.mean(unmixed),
        "scratch_unmixed_std": statistics.stdev(unmixed),
        "kd_mean": statistics.mean(kd),
        "kd_std": statistics.stdev(kd),
        "teacher_minus_scratch": teacher["top1"] - statistics.mean(scratch),
        "configurations_std": statistics.stdev(scores),
        "configurations_range": max(scores) - min(scores),
        "best_mean": statistics.mean(repeated),
        "best_std": statistics.stdev(repeated),
        "best_minus_scratch": statistics.mean(repeated) - statistics.mean(scratch),
        "spread_over_seeds": statistics.stdev(scores) / statistics.stdev(repeated),
    }
