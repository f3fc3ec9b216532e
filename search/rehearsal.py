"""One step of everything that a study trains, before it trains: what would fail there fails here, and what it costs."""

import time
from collections.abc import Callable
from typing import Any

from search.estimate import project
from search.preflight import Plan
from search.stored import is_stored, store_estimate
from trainables.config import BY_DEVICE, TrialConfig
from trainables.distillers import distillers_of
from trainables.errors import InputError

TRIED = ("student", "distiller", "opt", "sched", "aa", "train_interpolation", "bce_loss", "enhance", "projector", "amp")
TIMED_STEPS, TIMED_S = 3, 5.0  # calls, or fewer where they take longer
TIMED_BATCH = 32  # a larger batch is taken to cost in proportion
TIMED_STEP_S = 1.0  # as many images as this allows are timed on a CPU, where a few tell as much as many


def rehearse(plan: Plan, splits) -> None:
    """Makes one step of every kind of trial, and one of the teacher's fitting, on images of the real stream.

    Raises:
        InputError: models, optimizer, augmentation and batch do not go together.
    """
    from trainables.teacher import fit_config

    workers = plan.settings.workers_per_trial
    for config in _kinds(plan):
        terms = _one_step(config, splits, workers)
        for distiller in distillers_of(config.distiller):
            own = config.student == plan.base.student
            if own and config.stages == plan.available and not distiller.weights.keys() <= terms.keys():
                raise InputError(f"distiller: {distiller.name} compares stages; student and teacher have none alike")
    if plan.base.teacher_source == "fit":
        try:
            _one_step(fit_config(plan.base, plan.teacher_recipe), splits, workers)
        except InputError as error:
            raise InputError([f"teacher_recipe: {problem}" for problem in error.problems]) from error


def estimate(plan: Plan, splits) -> dict[str, Any]:
    """What the study will cost, from timed steps of a trial with all stages on this machine's own device.

    Returns:
        `step_s`, `steps_per_epoch`, `trial_s` (full length, the holdout's judging included), both with the teacher's
        answers read from the store where they are kept; `teacher_s`, the teacher's fitting, 0 where it is not fitted;
        `store_s` and `store_mb`, as `store_estimate`; what `project` makes of them for the study; `bank_mb`, a worker's
        part of CRD's memory bank; and what `costs` says of the timed trial, whose distiller is `distiller`. Decoding by
        loader processes is not counted, since it goes on beside the steps.
    """
    from trainables.cost import costs
    from trainables.teacher import fit_config

    settings, config = plan.settings, _fullest(plan)
    training_s, answer_s, judging_s, taught = _per_image(config, splits, settings)
    stored = {"store_s": 0.0, "store_mb": 0.0}
    if is_stored(config):
        streams = 1 + (settings.seeds if plan.final_count else 0)
        width = taught.teacher_embedding or 0
        stored = store_estimate(config, plan.train_images, streams, answer_s, len(splits.classes), width)
        stored["store_s"] /= settings.workers_per_trial
        training_s = max(0.0, training_s - answer_s)
    judging_s *= plan.holdout_images / settings.workers_per_trial
    step_s = training_s * config.batch_size / settings.workers_per_trial
    steps = max(1, plan.train_images // config.batch_size)
    trial_s = (step_s * steps + judging_s) * config.epochs
    teacher_s = 0.0
    if config.teacher_source == "fit":
        fitting = fit_config(plan.base, plan.teacher_recipe)
        image_s, _, judged_s, _ = _per_image(fitting, splits, settings)
        seen = image_s * len(splits.teacher_train) + judged_s * plan.holdout_images
        teacher_s = seen * fitting.epochs / settings.workers_per_trial
    return {
        "step_s": step_s,
        "steps_per_epoch": steps,
        **stored,
        **project(plan, trial_s, teacher_s, stored["store_s"]),
        "bank_mb": sum(shard.nbytes for shard in taught.shards().values()) / 1e6 / settings.workers_per_trial,
        "distiller": config.distiller,
        **costs(taught, config.img_size),
    }


def _per_image(config: TrialConfig, splits, settings) -> tuple[float, float, float, Any]:
    """Seconds that one worker takes to train an image, the teacher's of them, and to judge one; and what it trained."""
    import torch

    from trainables.step import WARM_UP

    threads = torch.get_num_threads()
    torch.set_num_threads(settings.cpus_per_worker)
    try:
        device = torch.device("cuda" if settings.gpus_per_trial and torch.cuda.is_available() else "cpu")
        size = min(config.batch_size // settings.workers_per_trial, len(splits.train), TIMED_BATCH)
        student = _student(config, splits)
        stream = _stream(config, splits, student, 1, size)
        batch = _first(stream)
        # The teacher's recipe has its defaults still open; compiling takes longer than all that is timed here.
        config = config.on(device.type).model_copy(update={"torchcompile": False})
        loading = 0.0 if config.loader_workers else _timed(lambda: _first(stream)) / len(batch[0])
        step, answer, judge, taught = _stepper(config, student, splits, device)
        if device.type == "cpu":
            two = [part[:2] for part in batch]
            step(*two)
            two_s = _timed(lambda: step(*two), TIMED_STEP_S)
            few = max(2, int(2 * TIMED_STEP_S / two_s))
            batch = [part[:few] for part in batch]
        else:
            for _ in range(WARM_UP + 1):  # then steps are replayed
                step(*batch)
        images = batch[0]
        training = _timed(lambda: step(*batch)) / len(images)
        answering, judging = (_timed(lambda: work(images)) / len(images) for work in (answer, judge))  # noqa: B023
        return training + loading, answering, judging, taught
    finally:
        torch.set_num_threads(threads)


def _fullest(plan: Plan) -> TrialConfig:
    """A trial with all stages that there may be, and the study's own distiller or the first that is searched."""
    distillers = plan.distillers
    distiller = plan.base.distiller if plan.base.distiller in distillers else distillers[0]
    stages = plan.base.stages if "stages" in plan.settings.pinned else plan.available
    return plan.base.model_copy(update={"stages": stages, "eps": 1.0, "distiller": distiller})


def _kinds(plan: Plan) -> list[TrialConfig]:
    """A trial with all stages, and what baselines and search have besides it of the fields that may not go together."""
    kinds = [_fullest(plan), *plan.baselines.values(), *plan.drawn]

    def kind(config: TrialConfig) -> tuple:
        return bool(config.stages), *(str(getattr(config, name)) for name in TRIED)

    return list({kind(config): config for config in reversed(kinds)}.values())


def _one_step(config: TrialConfig, splits, workers: int) -> dict[str, Any]:
    """The terms of the loss."""
    import torch

    config = config.model_copy(update=BY_DEVICE["cpu"] | {"amp": config.amp})  # it is made there
    student = _student(config, splits)
    batch = _first(_stream(config, splits, student, workers, 2))
    step, *_ = _stepper(config, student, splits, torch.device("cpu"))
    try:
        return step(*batch)
    except RuntimeError as error:  # e.g. an optimizer that asks for more than gradients
        reason = " ".join(str(error).split())
        raise InputError(f"a training step fails with opt={config.opt!r}, amp={config.amp}: {reason}") from error


def _student(config: TrialConfig, splits):
    """The student with random weights: the real ones were tried where they are built."""
    from trainables.loop import build_student

    plain = config.model_copy(update={"student_source": "scratch", "student_weights": None})
    return build_student(plain, len(splits.classes))


def _stream(config: TrialConfig, splits, student, workers: int, size: int):
    """The real stream in batches of so many images a worker; the whole one is made too, for what it checks."""
    from trainables.build import normalization
    from trainables.stream import train_loader

    mean, std = normalization(student.model)
    options = dict(mean=mean, std=std, rank=0, world_size=workers, seed=config.seed, num_classes=len(splits.classes))
    train_loader(splits.train, config.model_copy(update={"loader_workers": 0}), **options)
    even = max(2, size // 2 * 2) * workers
    return train_loader(splits.train, config.model_copy(update={"batch_size": even, "loader_workers": 0}), **options)


def _first(stream):
    """The stream's first batch."""
    return next(iter(stream.epoch(0)))


def _stepper(config: TrialConfig, student, splits, device):
    """Functions that make one training step, have the teacher answer images, and judge images; the student in training.

    Raises:
        InputError: the distiller and the models do not go together.
    """
    import torch

    from trainables.acceleration import precision
    from trainables.build import normalization
    from trainables.distillation import make_taught, needs_of
    from trainables.optim import make_optimizer, make_scheduler
    from trainables.step import TrainStep
    from trainables.teacher import Teacher, build_teacher

    student.to(device)
    teacher = None
    if config.distiller != "none":
        bare = build_teacher(config.model_copy(update={"teacher_source": "fit"}), len(splits.classes))
        teacher = Teacher(bare, *normalization(student.model), needs_of(config)).to(device)
    taught = make_taught(student, config, lambda: teacher, torch.from_numpy(splits.train.targets)).to(device)
    optimizer = make_optimizer(taught, config)
    make_scheduler(optimizer, config, steps_per_epoch=1)
    train = TrainStep(taught, optimizer, config, device, lambda _: None)

    def step(images, target, index) -> dict[str, Any]:
        images, target, index = images.to(device), target.to(device), index.to(device)
        with precision(config, device):
            answer = teacher(images) if teacher else None
        values = train(images, target, answer, index, 0, 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return dict(zip(train.names, values, strict=True))

    def answer(images) -> None:
        if teacher:
            with precision(config, device):
                teacher(images.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize()

    @torch.no_grad()
    def judge(images) -> None:
        student.model.eval()(images.to(device))
        student.model.train()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, answer, judge, taught


def _timed(work: Callable[[], object], most_s: float = TIMED_S) -> float:
    """Seconds of one call, the best of a few where they are short: other processes only ever add."""
    times = []
    while len(times) < TIMED_STEPS and sum(times) < most_s:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
