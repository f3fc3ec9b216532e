"""What speeds a step up, and that it changes nothing: compilation, fused updates, a replayed graph."""

import pytest
import timm
import torch

from trainables.acceleration import accelerate, blocks
from trainables.assets import Assets
from trainables.config import BY_DEVICE, TrialConfig
from trainables.context import RunContext
from trainables.loop import build_student, run_trial
from trainables.optim import make_optimizer
from trainables.step import TrainStep, replayable

PLAIN = dict.fromkeys(BY_DEVICE["cpu"], False)
NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def config_of(**fields):
    return TrialConfig(**{"teacher": "test_vit", "student": "test_resnet", "epochs": 1, "img_size": 32, **fields})


class Terms(torch.nn.Module):
    """In place of a student in training: one linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 3)))

    def forward(self, images, target, *_):
        return {"loss": torch.nn.functional.cross_entropy(self.layer(images), target)}


class Taught:
    """What `make_optimizer` asks of a student in training."""

    def __init__(self):
        self.student = build_student(config_of(), 10)
        self.extras = torch.nn.ModuleDict()


def test_what_depends_on_the_device_is_filled_in_and_what_is_given_stays():
    for device, best in BY_DEVICE.items():
        assert {name: getattr(config_of().on(device), name) for name in PLAIN} == best
    given = config_of(amp=False, torchcompile=True)
    assert not given.on("cuda").amp and given.on("cpu").torchcompile
    assert not config_of(student="my.module:make").on("cuda").cuda_graph, "it may decide in Python"


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("resnet18", "BasicBlock", 8), ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12)],
)
def test_a_models_blocks_are_its_innermost_repeated_parts(name, kind, count):
    found = [type(one).__name__ for one in blocks(timm.create_model(name))]
    assert found.count(kind) == count and set(found) <= {kind, "SwinTransformerStage", "PatchMerging"}


def test_optimizers_without_a_fused_form_are_made_as_they_are():
    taught = Taught()
    for opt, fused in (("adamw", True), ("sgd", True), ("lamb", None), ("lookahead_adamw", True)):
        optimizer = make_optimizer(taught, config_of(opt=opt, opt_fused=True))
        assert optimizer.param_groups[0].get("fused") == fused, opt


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"opt": "sgd"}, True),
        ({"opt": "sgd", "opt_fused": False}, False),
        ({"opt": "lamb"}, False),
        ({"cuda_graph": False}, False),
        ({"amp_dtype": "float16"}, False),
        ({"curriculum_temperature": True}, False),
        ({"distiller": "crd"}, False),
        ({"distiller": "dkd"}, True),
        ({"distiller": "dkd", "dkd_warmup_epochs": 5}, False),
        ({"distiller": "ofa+crd"}, False),
    ],
)
def test_a_step_is_replayed_where_each_is_made_of_the_same_kernels(fields, expected):
    config = config_of(**fields).on("cuda")
    optimizer = make_optimizer(Taught(), config)
    assert not optimizer.param_groups[0].get("capturable"), "its model is on a CPU"
    if config.cuda_graph and "capturable" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["capturable"] = True
    assert replayable(config, optimizer, torch.device("cuda")) == expected
    assert not replayable(config, optimizer, torch.device("cpu"))


def test_a_block_that_cannot_be_compiled_runs_as_it_is_and_says_so():
    def refuses(*_):
        raise RuntimeError("no such operation")

    config, module, told = config_of(torchcompile=True).on("cpu"), Terms(), []
    module.layer[0].compile(backend=refuses)
    step = TrainStep(module, torch.optim.SGD(module.parameters(), lr=0.1), config, torch.device("cpu"), told.append)
    for number in range(2):
        values = step(torch.ones(2, 4), torch.tensor([0, 1]), None, torch.arange(2), number, 0)
        assert step.names == ("loss",) and torch.isfinite(values).all()
    assert len(told) == 1 and told[0].startswith("torchcompile: test_resnet cannot be compiled:")


def test_a_trial_is_compiled_whatever_was_compiled_before(monkeypatch):
    """PyTorch keeps so many forms of a block and runs others as they are: then the past would decide how one rounds."""
    compiled, original = [], torch.nn.Module.compile

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **more: original(block, backend=count, **more))
    images, numbers = torch.zeros(2, 3, 32, 32), []
    for trial in range(8):
        config = config_of(student="vit_tiny_patch16_224", drop_path=0.05 + trial / 70, torchcompile=True)
        student = build_student(config, 10).train()
        accelerate(student, config)
        before = len(compiled)
        student(images)
        numbers.append(len(compiled) - before)
    assert min(numbers) >= 9, numbers  # of its twelve blocks, most of which drop at a rate of their own


@pytest.mark.long
def test_compiled_blocks_give_the_plain_ones_numbers():
    torch.manual_seed(0)
    student = build_student(config_of(student="mixer_nano"), 10).eval()
    images = torch.randn(4, 3, 32, 32)
    plain = student(images)
    accelerate(student, config_of(torchcompile=True, channels_last=True))
    fast = student(images)
    assert all(block._compiled_call_impl for block in blocks(student))
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-4, atol=1e-5)
    for stage, logits in plain.stage_logits.items():
        torch.testing.assert_close(fast.stage_logits[stage], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"lr": 1e-3}, {"opt": "sgd", "lr": 0.002, "student": "resnet18"}])
def test_what_is_on_by_default_gives_the_plain_ones_numbers(fields, tmp_path):
    def losses(name, **more):
        config = config_of(
            data="digits", img_size=32, max_images=64, batch_size=16, epochs=2, teacher_source="fit",
            teacher_store="off", **fields, **more,
        )  # fmt: skip
        reports = []
        run_trial(config, Assets(), RunContext(tmp_path / name, lambda one: reports.append(one) or True))
        return [one[name] for one in reports for name in ("train/loss", "train/loss_ofa", "val/loss")]

    assert losses("fast") == pytest.approx(losses("plain", **PLAIN), rel=1e-3)


@NEEDS_A_GPU
@pytest.mark.parametrize(
    "fields",
    [{}, {"distiller": "rsd"}, {"distiller": "dkd"}, {"opt": "sgd", "lr": 0.05, "clip_grad": 1.0, "model_ema": True},
     {"student": "mixer_nano", "drop": 0.1, "drop_path": 0.1, "mixup": 0.8, "reprob": 0.3}],
    ids=["ofa", "embedding", "dkd", "sgd", "random"],
)  # fmt: skip
def test_a_replayed_step_gives_the_plain_ones_numbers(fields, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = {}
    for graph in (False, True):
        config = config_of(
            data="digits", max_images=160, batch_size=16, epochs=2, deterministic=True, torchcompile=False,
            teacher_source="fit", teacher_store="off", cuda_graph=graph, **fields,
        )  # fmt: skip
        warnings, reports = [], []
        context = RunContext(tmp_path / str(graph), lambda one, kept=reports: kept.append(one) or True, device="cuda")
        run_trial(config, Assets("cuda", warn=warnings.append), context)
        told[graph] = [(one["train/loss"], one["val/loss"]) for one in reports]
        assert warnings == []
    assert told[True] == told[False]


class Waits(Terms):
    """A module whose step asks the device for a number."""

    def forward(self, images, target, *_):
        terms = super().forward(images, target)
        assert terms["loss"].item() > 0
        return terms


@NEEDS_A_GPU
def test_a_step_that_waits_for_the_device_is_not_captured_and_says_so():
    config, module, told = config_of(torchcompile=False).on("cuda"), Waits().to("cuda"), []
    optimizer = torch.optim.AdamW(module.parameters(), fused=True, capturable=True)
    step = TrainStep(module, optimizer, config, torch.device("cuda"), told.append)
    for number in range(6):
        images, target = torch.ones(2, 4, device="cuda"), torch.tensor([0, 1], device="cuda")
        step(images, target, None, target, number, 0)
    assert step._graph is None and len(told) == 1 and "waits for the device" in told[0]
