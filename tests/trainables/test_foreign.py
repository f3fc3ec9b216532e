"""Models that are not timm's, from torchvision and from the user's own modules."""

import copy
import pickle
import sys

import pytest
import safetensors.torch
import torch
import torchvision

from trainables.build import build_model, family, normalization, pooled_embedding
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.distillation import loss_terms, make_taught, needs_of
from trainables.distillers.base import Step, TeacherOutput
from trainables.errors import InputError
from trainables.projectors import ConvProjector, TokenProjector
from trainables.student import Student, available_stages, stages_of
from trainables.teacher import Teacher

VIT = {"image_size": 32, "patch_size": 8, "num_layers": 8, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
SWIN = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": [2, 2]}
BLOCKS = ["layer1", "layer2", "layer3", "layer4"]
# torchvision's class or function, image side, its arguments, modules tapped for stages 1 to 4, width of the embedding
TORCHVISION = [
    ("resnet18", 32, {}, BLOCKS, 512),
    ("mobilenet_v3_small", 64, {}, ["features.1", "features.3", "features.8", "features"], 1024),  # squeezes inside
    ("convnext_tiny", 32, {}, ["features.1", "features.3", "features.5", "features"], 768),
    ("SwinTransformer", 64, SWIN, ["features.1", "features.3", "features.5", "norm"], 128),  # channels last
    ("VisionTransformer", 32, VIT, [f"encoder.layers.encoder_layer_{i}" for i in (1, 3, 5, 7)], 24),  # class token
    ("squeezenet1_1", 64, {}, ["features.0", "features.4", "features.7", "features"], 512),  # a convolution classifies
]


def built(name, size=32, classes=5, **options):
    torch.manual_seed(0)
    return build_model(
        name if ":" in name else f"torchvision.models:{name}", num_classes=classes, img_size=size, **options
    )


def refusal(name, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        built(name, *args, **kwargs)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a module that a user might have, and says its name."""

    def write(text):
        name = f"mine_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(f"import torch\nimport torch.nn as nn\n\n{text}")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


class TestTorchvision:
    @pytest.mark.parametrize("name, size, kwargs, modules, width", TORCHVISION)
    def test_one_pass_gives_its_own_logits_and_trains_everything(self, name, size, kwargs, modules, width):
        model = built(name, size, kwargs=kwargs)
        torch.manual_seed(0)
        plain = getattr(torchvision.models, name)(num_classes=5, **kwargs)
        assert isinstance(model, type(plain)) and model.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
        assert [model.feature_info[i]["module"] for i in stages_of(model)] == modules
        student = Student(model, 5, size, available_stages(model))
        kind = TokenProjector if name == "VisionTransformer" else ConvProjector
        assert all(type(branch) is kind for branch in student.projectors.values())
        x = torch.randn(4, 3, size, size)
        for mode in (False, True):
            student.train(mode), plain.train(mode)
            torch.manual_seed(1)
            expected = plain(x)
            torch.manual_seed(1)
            output = student(x)
            logits, heads = output.logits, output.stage_logits
            torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        assert all(head.shape == (4, 5) for head in heads.values()) and list(heads) == [1, 2, 3, 4]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        config = TrialConfig(teacher="t", student=name, epochs=1, stages=list(heads))
        step = Step(output, TeacherOutput(torch.randn(4, 5)), torch.tensor([0, 1, 2, 3]))
        loss_terms(config, step, {})["loss"].backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())
        final, features = model.eval().forward_intermediates(x)
        assert pooled_embedding(model, final).shape == (4, width) and model.num_features == width
        for feature, info in zip(features, model.feature_info, strict=True):
            assert feature.shape[1] == info["num_chs"] and feature.shape[2] == feature.shape[3]

    def test_the_embedding_is_what_the_classifier_gets(self):
        model, x = built("resnet18").eval(), torch.randn(2, 3, 32, 32)
        final, _ = model.forward_intermediates(x)
        torch.testing.assert_close(model.fc(pooled_embedding(model, final)), model(x))

    def test_features_come_in_their_places(self):
        """A grid of tokens behind a class token, and channels last, against the modules' own outputs."""
        vit, x = built("VisionTransformer", kwargs=VIT).eval(), torch.randn(2, 3, 32, 32)
        seen = []
        vit.encoder.layers[3].register_forward_hook(lambda _, __, output: seen.append(output))
        _, [feature] = vit.forward_intermediates(x, indices=[3])
        assert torch.equal(feature[1, :, 2, 3], seen[0][1, 1 + 2 * 4 + 3])
        swin, x = built("SwinTransformer", 64, kwargs=SWIN).eval(), torch.randn(2, 3, 64, 64)
        swin.features[1].register_forward_hook(lambda _, __, output: seen.append(output))
        _, [feature] = swin.forward_intermediates(x, indices=[0])
        assert torch.equal(feature[1, :, 5, 9], seen[1][1, 5, 9])

    def test_the_last_features_are_taken_by_their_number(self):
        model, x = built("resnet18").eval(), torch.randn(2, 3, 32, 32)
        _, everything = model.forward_intermediates(x)
        for number, expected in {0: [], 1: everything[-1:], 3: everything[-3:], 9: everything}.items():
            _, features = model.forward_intermediates(x, indices=number)
            assert len(features) == len(expected) and all(map(torch.equal, features, expected))

    @pytest.mark.parametrize("distiller", ["rsd", "cc", "rkd", "crd", "fitnet"])
    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_a_step_with_each_distiller_that_looks_inside(self, role, distiller):
        foreign = {role: "torchvision.models:VisionTransformer", f"{role}_kwargs": VIT}
        fields = {"student": "test_resnet", "teacher": "test_vit", "stages": [2, 4], "distiller": distiller, **foreign}
        config = TrialConfig(**fields, epochs=1, img_size=32)
        torch.manual_seed(0)
        models = {
            key: build_model(fields[key], num_classes=5, img_size=32, kwargs=fields.get(f"{key}_kwargs"), field=key)
            for key in ("student", "teacher")
        }
        student = Student(models["student"], 5, 32, config.stages, needs=needs_of(config))
        teacher = Teacher(models["teacher"], *normalization(models["student"]), needs_of(config))
        made = make_taught(student, config, lambda: teacher, torch.arange(10) % 5).train()
        x, target, index = torch.randn(8, 3, 32, 32), torch.arange(8) % 5, torch.arange(8)
        terms = made(x, target, teacher(x), index)
        assert terms.keys() > {"loss", "gt", "kd", "ofa"}, "its own term"
        terms["loss"].backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())
        assert all(weight.grad is None for weight in teacher.parameters())

    def test_modules_by_name(self):
        model = built("resnet18", taps=["layer1", "layer3.0.conv1", "avgpool"])
        assert stages_of(model, ["layer1", "layer3.0.conv1", "avgpool"]) == stages_of(model) == [0, 1, 2]
        student = Student(model, 5, 32, [1, 3], taps=["layer1", "layer3.0.conv1", "avgpool"])
        assert list(student(torch.randn(2, 3, 32, 32))[1]) == [1, 3]
        message = refusal("resnet18", taps=["layer1", "layer5"])
        assert "no module 'layer5'" in message and "layer4" in message
        assert "taps=layer1,layer2" in refusal("resnet18", taps=["layer2", "layer1"])

    def test_copies_and_pickles_are_whole(self):
        model, x = built("resnet18").eval(), torch.randn(2, 3, 32, 32)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other) is type(model) and other.fc is not model.fc
            final, features = other.forward_intermediates(x)
            assert torch.equal(other.forward_head(final), model(x)) and len(features) == 5

    def test_its_state_dict_is_that_of_the_plain_model(self, tmp_path):
        model, x = built("resnet18"), torch.randn(2, 3, 32, 32)
        save_weights(model, tmp_path / "student.safetensors")
        plain = torchvision.models.resnet18(num_classes=5)
        plain.load_state_dict(safetensors.torch.load_file(tmp_path / "student.safetensors"), strict=True)
        assert torch.equal(plain.eval()(x), model.eval()(x))
        again = built("resnet18", source="checkpoint", weights=str(tmp_path / "student.safetensors"))
        assert torch.equal(again.eval()(x), model(x))
        wrong = refusal("resnet18", classes=7, source="checkpoint", weights=str(tmp_path / "student.safetensors"))
        assert "its classifier has 5 classes and the data has 7" in wrong

    def test_recipe_and_normalisation(self):
        model = built("resnet18")
        assert family(model) == "cnn" and family(built("VisionTransformer", kwargs=VIT)) == "token"
        assert normalization(model) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestOwnModules:
    def test_arguments_of_timms_names_are_set_by_the_fields(self, mine):
        name = mine(
            "class Net(nn.Module):\n"
            "    def __init__(self, num_classes, img_size, drop_rate=0.0, width=8):\n"
            "        super().__init__()\n"
            "        self.given, self.num_features = (img_size, drop_rate, width), 3 * img_size * img_size\n"
            "        self.fc = nn.Sequential(nn.Linear(self.num_features, width), nn.Linear(width, num_classes))\n"
            "    def forward(self, x):\n"
            "        return self.forward_head(x.reshape(-1, self.num_features))\n"
            "    def forward_head(self, x):\n"
            "        return self.fc(x)\n"
        )
        model = built(f"{name}:Net", drop=0.3, kwargs={"width": 16})
        assert model.given == (32, 0.3, 16) and model.num_features == 3 * 32 * 32, "its own attribute, that it uses"
        final, features = model.forward_intermediates(torch.randn(2, 3, 32, 32))
        assert features == [] and available_stages(model) == [] and pooled_embedding(model, final).shape == (2, 16)
        assert model.forward_head(final).shape == (2, 5)
        assert "drop_rate=0.1 cannot be given here; drop sets it" in refusal(f"{name}:Net", kwargs={"drop_rate": 0.1})
        assert "drop_path=0.1: the factory of student" in refusal(f"{name}:Net", drop_path=0.1)
        built(f"{name}:Net", drop_path=0.0)

    def test_a_timm_model_from_a_factory_is_taken_as_it_is(self, mine):
        name = mine(
            "import timm\n\ndef make(num_classes, img_size):\n"
            "    return timm.create_model('test_vit', num_classes=num_classes, img_size=img_size)\n"
        )
        model = built(f"{name}:make")
        assert type(model).__name__ == "VisionTransformer" and stages_of(model) == [1, 2, 4, 5]
        assert normalization(model)[0] == (0.5, 0.5, 0.5)

    def test_auxiliary_outputs_in_training_are_refused(self):
        model = built("googlenet", 64, kwargs={"init_weights": False, "aux_logits": True})
        with pytest.raises(InputError, match="in training it gives a GoogLeNetOutputs"):
            model.train()(torch.randn(2, 3, 64, 64))

    def test_a_classifier_that_is_no_layer_has_no_embedding(self, mine):
        name = mine(
            "class Net(nn.Module):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__()\n"
            "        self.conv = nn.Conv2d(3, 8, 4, 4)\n"
            "        self.classes = nn.Parameter(torch.randn(num_classes, 8))\n"
            "    def forward(self, x):\n"
            "        return self.conv(x).mean((2, 3)) @ self.classes.T\n"
            "    def no_weight_decay(self):\n"
            "        return {'classes'}\n"
        )
        model = built(f"{name}:Net")
        assert Student(model, 5, 32, []).no_weight_decay() == {"model.classes"}
        final, [feature] = model.forward_intermediates(torch.randn(2, 3, 32, 32))
        assert feature.shape == (2, 8, 8, 8) and model.forward_head(final).shape == (2, 5)
        with pytest.raises(InputError, match="has no embedding"):
            pooled_embedding(model, final)

    def test_a_classifier_called_by_keyword_has_an_embedding(self, mine):
        name = mine(
            "class Net(nn.Module):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__()\n"
            "        self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, num_classes)\n"
            "    def forward(self, x):\n"
            "        return self.fc(input=self.conv(x).mean((2, 3)))\n"
        )
        model, x = built(f"{name}:Net"), torch.randn(2, 3, 32, 32)
        final, _ = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(final), model(x))
        torch.testing.assert_close(pooled_embedding(model, final), model.conv(x).mean((2, 3)))

    @pytest.mark.parametrize(
        "name, options, words",
        [
            (
                "no_such_package.models:net",
                {},
                ["student=no_such_package.models:net", "cannot be imported", "PYTHONPATH"],
            ),
            ("torchvision.models:resnet81", {}, ["no callable 'resnet81'", "did you mean", "resnet18"]),
            ("torchvision.models:", {}, ["package.module:factory"]),
            ("hf-hub:timm/resnet18", {}, ["package.module:factory"]),
            ("torchvision.models:resnet18", {"kwargs": {"width": 3}}, ["num_classes=5, width=3", "student_kwargs"]),
            ("torchvision.models:resnet18", {"kwargs": {"num_classes": 3}}, ["num_classes=3", "the data sets it"]),
            ("torchvision.models:resnet18", {"drop_path": 0.1}, ["drop_path=0.1", "no argument drop_path_rate"]),
            (
                "torchvision.models:vit_b_16",
                {"classes": 7, "field": "teacher"},
                ["img_size=32: teacher", "teacher_kwargs"],
            ),
            ("builtins:dict", {}, ["gives a dict", "torch.nn.Module"]),
            ("torch.nn:Flatten", {}, ["Flatten"]),
            (
                "torchvision.models:resnet18",
                {"source": "pretrained", "field": "teacher"},
                ["teacher_source=pretrained", "teacher_weights=PATH", "teacher_kwargs"],
            ),
        ],
    )
    def test_refusals_are_one_line(self, name, options, words):
        message = refusal(name, **options)
        assert all(word in message for word in words), message

    def test_refusals_of_what_a_factory_gives(self, mine):
        name = mine(
            "kept = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))\n\n"
            "def fixed(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1000))\n\n"
            "def empty(num_classes):\n    return nn.Flatten()\n\n"
            "def same(num_classes):\n    return kept\n\n"
            "def broken(num_classes):\n    raise ValueError('first\\nsecond')\n"
        )
        assert "its output is of shape [2, 1000] and should be [2, 5]" in refusal(f"{name}:fixed")
        assert "without parameters" in refusal(f"{name}:empty")
        assert "ValueError: first second" in refusal(f"{name}:broken")
        built(f"{name}:same")
        assert "the same model again" in refusal(f"{name}:same")
        del sys.modules[name]
        assert "ModuleNotFoundError" in refusal(f"{mine('import nothing_of_the_kind')}:make")

    @pytest.mark.parametrize(
        "make, words",
        [
            ("Fixed", ["class Fixed cannot be tapped", "'feature_info'"]),
            ("Last", ["class Last cannot be tapped", "TypeError: no subclasses"]),
            ("scripted", ["class RecursiveScriptModule cannot be tapped", "it is TorchScript"]),
            ("traced", ["cannot be tapped", "it is TorchScript"]),
            ("around", ["class Sequential cannot be tapped", "0 is TorchScript"]),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
    def test_a_class_that_cannot_be_tapped_is_named(self, mine, make, words):
        name = mine(
            "class Net(nn.Sequential):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__(nn.Conv2d(3, 8, 32), nn.Flatten(), nn.Linear(8, num_classes))\n\n"
            "class Fixed(Net):\n    feature_info = property(lambda self: [])\n\n"
            "class Last(Net):\n"
            "    def __init_subclass__(cls):\n"
            "        raise TypeError('no subclasses')\n\n"
            "def scripted(num_classes):\n    return torch.jit.script(Net(num_classes))\n\n"
            "def traced(num_classes):\n    return torch.jit.trace(Net(num_classes), torch.zeros(2, 3, 32, 32))\n\n"
            "def around(num_classes):\n    return nn.Sequential(scripted(num_classes))\n"
        )
        message = refusal(f"{name}:{make}", field="teacher")
        assert message.startswith(f"teacher={name}:{make}: its class ") and "img_size" not in message
        assert all(word in message for word in words), message
