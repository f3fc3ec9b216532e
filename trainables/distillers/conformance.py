"""What every distiller must hold. A new one is tried by `check(DISTILLERS[name])`; the tests do it for all."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from trainables.config import TrialConfig
from trainables.distillers import defaults
from trainables.distillers.base import (
    STAGE_LOGITS,
    STUDENT_EMBEDDING,
    STUDENT_FEATURES,
    TEACHER_EMBEDDING,
    TEACHER_FEATURES,
    Distiller,
    Shapes,
    Step,
    StudentOutput,
    TeacherOutput,
)

CLASSES, IMAGES = 7, 40
STUDENT_WIDTH, TEACHER_WIDTH = 12, 20
STUDENT_MAPS = {1: (6, 8, 8), 2: (9, 4, 4), 4: (12, 2, 2)}
TEACHER_MAPS = {1: (20, 4, 4), 2: (20, 4, 4), 3: (20, 4, 4), 4: (20, 4, 4)}
GAP = 1e4  # of logits, far beyond where float32's softmax underflows


def check(distiller: Distiller) -> None:
    """All checks.

    Raises:
        AssertionError: one does not hold; its text says which.
    """
    for one in (check_declaration, check_terms, check_gradients, check_hazards):
        one(distiller)


def check_declaration(distiller: Distiller) -> None:
    """The fields have its name, defaults are valid, and every range is of a field it reads and holds its bounds."""
    own = distiller.Fields.model_fields
    assert distiller.title, "it needs a title with its source"
    for field in own:
        assert distiller.name == "ofa" or field.startswith(f"{distiller.name}_"), f"{field} must begin with its name"
    assert set(distiller.weights.values()) <= set(TrialConfig.model_fields), "a weight is no field"
    for field, bounds in distiller.ranges.items():
        assert field in distiller.hyperparameters(), f"it has a range for {field}, which it does not read"
        for value in bounds.choices or (bounds.low, bounds.high):
            config_of(distiller, **{field: value})
        if field in own:
            assert own[field].default in bounds, f"the default of {field} is outside its range"
    assert distiller.stage_terms <= set(distiller.weights), "a term of stages has no weight"
    assert distiller.name == "none" or set(distiller.weights.values()) <= set(distiller.ranges), "a weight has no range"


def check_terms(distiller: Distiller) -> None:
    """The terms are those declared, scalars, float32, finite, and the same again; half precision changes little."""
    config, module = config_of(distiller), module_of(distiller)
    step = step_of(distiller)
    terms = distiller.terms(config, step, copy.deepcopy(module))
    assert set(terms) == set(distiller.weights), f"its terms are {sorted(terms)}"
    for name, term in terms.items():
        assert term.shape == () and term.dtype == torch.float32 and term.isfinite(), f"{name} is {term}"
    again = distiller.terms(config, step, copy.deepcopy(module))
    assert all(torch.equal(again[name], term) for name, term in terms.items()), "the same step gives other losses"
    with torch.autocast("cpu", torch.bfloat16):
        half = distiller.terms(config, _halved(step), copy.deepcopy(module))
    for name, term in half.items():
        assert term.dtype == torch.float32, f"{name} is {term.dtype} under autocast"
        torch.testing.assert_close(term, terms[name], rtol=0.1, atol=0.05)


def check_gradients(distiller: Distiller) -> None:
    """All it asked of the student gets a gradient, the teacher none, and so does every parameter of its own."""
    step, module = step_of(distiller), module_of(distiller)
    teacher = [step.teacher.logits, step.teacher.embedding, *step.teacher.features.values()]
    teacher = [tensor.requires_grad_() for tensor in teacher if tensor is not None]
    asked = _asked(distiller, step.student)
    loss = sum(distiller.terms(config_of(distiller), step, module).values())
    if not distiller.weights:
        assert loss == 0 and not asked, "without a term nothing can be asked for"
        return
    loss.backward()
    for tensor in asked:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), (
            "the student learns nothing"
        )
    assert all(tensor.grad is None for tensor in teacher), "the teacher gets a gradient"
    for name, weight in module.named_parameters() if module else ():
        assert weight.grad is not None and weight.grad.isfinite().all(), f"{name} of its own gets no gradient"


def check_hazards(distiller: Distiller) -> None:
    """Losses and gradients stay finite at gaps of logits of 1e4, for one image, equal images and mixed labels."""
    labels = torch.zeros(6, CLASSES).scatter_(1, torch.arange(6).unsqueeze(1), 0.7)
    labels[:, 6] += 0.3
    plain = step_of(distiller)
    hazards = {
        "a student with large gaps": _with_logits(plain, student=GAP),
        "a teacher with large gaps": _with_logits(plain, teacher=GAP),
        "both with large gaps": _with_logits(plain, student=GAP, teacher=-GAP),
        "a batch of one": step_of(distiller, images=1),
        "equal images": step_of(distiller, equal=True),
        "mixed labels": replace(plain, target=labels),
    }
    for name, step in hazards.items():
        terms = distiller.terms(config_of(distiller), step, module_of(distiller))
        loss = sum(terms.values(), torch.zeros((), requires_grad=True))
        assert loss.isfinite(), f"{name}: the loss is {loss}"
        loss.backward()
        for tensor in _asked(distiller, step.student):
            assert tensor.grad is None or tensor.grad.isfinite().all(), f"{name}: a gradient is not finite"


def config_of(distiller: Distiller, **fields) -> TrialConfig:
    """A trial's configuration with this distiller at its defaults."""
    stages = list(STUDENT_MAPS)
    return TrialConfig(
        **{"teacher": "t", "student": "s", "epochs": 1, "stages": stages, "distiller": distiller.name}
        | defaults(distiller.name)
        | fields
    )


def module_of(distiller: Distiller) -> torch.nn.Module | None:
    """Its own module for the made-up shapes of `step_of`, always with the same weights."""
    torch.manual_seed(1)
    shapes = Shapes(STUDENT_WIDTH, TEACHER_WIDTH, STUDENT_MAPS, TEACHER_MAPS, torch.arange(IMAGES) % CLASSES)
    return distiller.module(config_of(distiller), shapes)


def step_of(distiller: Distiller, images: int = 6, equal: bool = False) -> Step:
    """A made-up step with what the distiller asked for; what is the student's wants a gradient."""
    generator, needs = torch.Generator().manual_seed(0), distiller.needs

    def draw(*shape: int) -> Tensor:
        rows = torch.randn(1 if equal else images, *shape, generator=generator)
        return rows.expand(images, *shape).clone()

    student = StudentOutput(
        draw(CLASSES).requires_grad_(),
        {stage: draw(CLASSES).requires_grad_() for stage in STUDENT_MAPS} if STAGE_LOGITS in needs else {},
        draw(STUDENT_WIDTH).requires_grad_() if STUDENT_EMBEDDING in needs else None,
        {stage: draw(*shape).requires_grad_() for stage, shape in STUDENT_MAPS.items()}
        if STUDENT_FEATURES in needs
        else {},
    )
    teacher = TeacherOutput(
        draw(CLASSES),
        draw(TEACHER_WIDTH) if TEACHER_EMBEDDING in needs else None,
        {stage: draw(*shape) for stage, shape in TEACHER_MAPS.items()} if TEACHER_FEATURES in needs else {},
    )
    index = torch.arange(images)
    return Step(student, teacher, index % CLASSES, index, temperature=2.0)


def _asked(distiller: Distiller, student: StudentOutput) -> list[Tensor]:
    """The student's tensors that the distiller learns from: what it declared, and the logits where it compares them."""
    found = [*student.stage_logits.values(), *student.features.values()]
    found += [student.embedding] if student.embedding is not None else []
    return found + ([student.logits] if distiller.weights and not distiller.needs - {STAGE_LOGITS} else [])


def _with_logits(step: Step, student: float = 1.0, teacher: float = 1.0) -> Step:
    ours = step.student._replace(
        logits=(step.student.logits.detach() * student).requires_grad_(),
        stage_logits={
            stage: (logits.detach() * student).requires_grad_() for stage, logits in step.student.stage_logits.items()
        },
    )
    return replace(step, student=ours, teacher=step.teacher._replace(logits=step.teacher.logits * teacher))


def _halved(step: Step) -> Step:
    def halve(output):
        parts = (
            {stage: tensor.bfloat16() for stage, tensor in part.items()}
            if isinstance(part, dict)
            else part.bfloat16()
            if part is not None
            else None
            for part in output
        )
        return type(output)(*parts)

    return replace(step, student=halve(step.student), teacher=halve(step.teacher))
