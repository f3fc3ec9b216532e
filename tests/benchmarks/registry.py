"""Does every classifier of timm's work as student and as teacher? Names are built without memory, on the meta device.

Each name, at its own image size: the real `build_model`, a `Student` with a projector at every stage it has, a pass of
it in train mode, the pooled embedding, and a pass as `Teacher`. A model that cannot run on the meta device runs on real
tensors, at a smaller size. Then, of every module of timm's, the smallest model makes one real distillation step, after
which every parameter must have a gradient, and a finite one.

`covered`, `refused` (encoders without a classifier, by name) and `failed` count names; `steps` and `steps_failed` count
modules. Only timm's own models count, not those that this project registers with it.
"""

import gc
import time
import warnings

CLASSES = 10
BATCH, SIZES = 4, (64, 96, 112)  # of the real steps; a model that takes none of the sizes resizes to its own inside
REAL_SIZE = 96  # of models that the meta device cannot run
EVERY = 50  # names a progress line


def measure() -> dict[str, float]:
    """Sweeps over all names, prints what fails, and makes the real steps."""
    import timm
    import torch

    import trainables.build  # noqa: F401 - registers this project's models, which are then left out

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    modules = {name: timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    modules = {name: module for name, module in modules.items() if module.startswith("timm.")}
    outcomes = {"covered": 0, "refused": 0, "failed": 0}
    smallest: dict[str, tuple[int, str]] = {}
    begun = time.monotonic()
    for number, (name, module) in enumerate(modules.items(), 1):
        outcome, weights = _outcome(name)
        outcomes[outcome] += 1
        if outcome == "covered":
            smallest[module] = min(smallest.get(module, (weights, name)), (weights, name))
        if number % EVERY == 0 or number == len(modules):
            counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            print(f"  {number}/{len(modules)} names: {counts}  ({time.monotonic() - begun:.0f} s)", flush=True)
    swept_s = time.monotonic() - begun
    failed_steps = [module for module, (_, name) in sorted(smallest.items()) if not makes_a_step(name)]
    print(f"  {len(smallest) - len(failed_steps)} modules made a step, {len(failed_steps)} failed", flush=True)
    return {
        **outcomes,
        "modules": len(set(modules.values())),
        "steps": len(smallest) - len(failed_steps),
        "steps_failed": len(failed_steps),
        "sweep_s": swept_s,
        "steps_s": time.monotonic() - begun - swept_s,
    }


def _outcome(name: str) -> tuple[str, int]:
    """What becomes of a name, and how many parameters the model has."""
    import timm

    from tests.benchmarks.shapes_only import ShapesOnly
    from trainables.errors import InputError

    try:
        try:
            with ShapesOnly():
                return "covered", used_both_ways(name, timm.get_pretrained_cfg(name).input_size[-1], "meta")
        except (RuntimeError, NotImplementedError, InputError) as error:
            if "meta tensors" not in str(error):
                raise
            print(f"  {name}: on real tensors", flush=True)
            return "covered", used_both_ways(name, REAL_SIZE, "cpu")
    except Exception as error:
        if isinstance(error, InputError) and "without a classifier" in str(error):
            print(f"  refused: {error}", flush=True)
            return "refused", 0
        print(f"  FAILED {name}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return "failed", 0


def used_both_ways(name: str, size: int, device: str) -> int:
    """Uses a model as student and as teacher and checks all shapes; returns its number of parameters."""
    import torch

    from trainables.build import build_model, normalization, pooled_embedding
    from trainables.student import Student, available_stages
    from trainables.teacher import Teacher

    with torch.device(device):
        model = build_model(name, num_classes=CLASSES, img_size=size)
        images = torch.zeros(2, 3, size, size)
        stages = available_stages(model)
        student = Student(model, CLASSES, size, stages)
        logits, stage_logits = student(images)[:2]
        with torch.no_grad():
            embedding = pooled_embedding(model, model.forward_intermediates(images)[0])
        width = getattr(model, "head_hidden_size", None) or model.num_features
        answer = Teacher(model, *normalization(model))(images).logits
    shapes = {
        "logits": (logits, CLASSES),
        "embedding": (embedding, width),
        "teacher's logits": (answer, CLASSES),
        **{f"stage {stage}": (stage_logits[stage], CLASSES) for stage in stages},
    }
    for what, (tensor, columns) in shapes.items():
        assert tensor.shape == (2, columns), f"{what}: {list(tensor.shape)} instead of {[2, columns]}"
    assert len(stages) >= 3, f"stages {stages}"
    return sum(weight.numel() for weight in model.parameters())


def makes_a_step(name: str) -> bool:
    """Whether a model makes a real distillation step; prints why not."""
    import torch

    from trainables.build import build_model
    from trainables.losses import ofa_loss
    from trainables.student import Student, available_stages

    begun = time.monotonic()
    try:
        size = _small_size(name)
        torch.manual_seed(0)
        model = build_model(name, num_classes=CLASSES, img_size=size)
        student = Student(model, CLASSES, size, available_stages(model))
        logits, stage_logits = student(torch.randn(BATCH, 3, size, size))[:2]
        target, teacher_logits = torch.arange(BATCH), torch.randn(BATCH, CLASSES)
        terms = [ofa_loss(each, teacher_logits, target, eps=1.2) for each in (logits, *stage_logits.values())]
        (torch.nn.functional.cross_entropy(logits, target) + sum(terms)).backward()
        trained = [(key, weight.grad) for key, weight in student.named_parameters() if weight.requires_grad]
        missing = [key for key, gradient in trained if gradient is None]
        infinite = [key for key, gradient in trained if gradient is not None and not gradient.isfinite().all()]
        assert not missing and not infinite, f"no gradient: {missing[:3]}, not finite: {infinite[:3]}"
    except Exception as error:
        print(f"  FAILED step of {name}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return False
    finally:
        gc.collect()
    if time.monotonic() - begun > 5:
        print(f"  step of {name} at {size} pixels: {time.monotonic() - begun:.0f} s", flush=True)
    return True


def _small_size(name: str) -> int:
    """The smallest of the sizes that a model takes without resizing inside; the smallest of all where there is none."""
    import torch

    from tests.benchmarks.shapes_only import ShapesOnly
    from trainables.build import build_model
    from trainables.errors import InputError

    for size in SIZES:
        try:
            with ShapesOnly(), torch.device("meta"):
                model = build_model(name, num_classes=CLASSES, img_size=size)
        except InputError:  # it cannot run on the meta device
            return SIZES[0]
        if not hasattr(model, "own_size"):
            return size
    return SIZES[0]
