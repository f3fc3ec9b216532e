import copy

import pytest
import safetensors.torch
import timm
import torch

from trainables import weights
from trainables.build import build_model, family, near_names, normalization
from trainables.errors import InputError
from trainables.weights import load_weights


def refusal(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        build_model(*args, **({"num_classes": 7, "img_size": 64} | kwargs))
    assert all("\n" not in problem for problem in caught.value.problems)
    return str(caught.value)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "name, size, arguments",
    [
        ("test_resnet", 64, {}),  # takes no img_size
        ("resmlp_12_224", 32, {"img_size": 32}),  # needs it
        ("crossvit_tiny_240", 64, {}),  # takes it and fails then
    ],
)
def test_any_size_with_the_weights_of_a_plain_build(name, size, arguments):
    torch.manual_seed(3)
    model = build_model(name, num_classes=7, img_size=size)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    plain = timm.create_model(name, num_classes=7, **arguments)
    assert same(model.state_dict(), plain.state_dict())
    assert torch.equal(after, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    x = torch.randn(2, 3, size, size)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_a_model_of_one_size_resizes_inside_and_stays_itself():
    model = build_model("test_vit", num_classes=7, img_size=70)
    plain = timm.create_model("test_vit", num_classes=7)
    plain.load_state_dict(model.state_dict())
    assert isinstance(model, type(plain)) and model.no_weight_decay() == plain.no_weight_decay()
    assert model.num_features == plain.num_features and len(model.feature_info) == len(plain.feature_info)
    x = torch.randn(2, 3, 70, 70)
    expected = plain.eval()(torch.nn.functional.interpolate(x, (160, 160), mode="bilinear"))
    model.eval()
    final, features = model.forward_intermediates(x)
    for logits in (model(x), model.forward_head(final), model.forward_head(model.forward_features(x))):
        torch.testing.assert_close(logits, expected)
    assert features[0].shape == (2, 64, 10, 10)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_rates_and_kwargs_reach_the_model():
    model = build_model(
        "test_resnet", num_classes=7, img_size=32, kwargs={"layers": (2, 1, 1, 1)}, drop=0.3, drop_path=0.2
    )
    assert model.drop_rate == 0.3 and len(model.layer1) == 2
    assert any(type(module).__name__ == "DropPath" for module in model.modules())


@pytest.mark.parametrize(
    "name, kwargs, words",
    [
        ("resnet81", {}, ["student=resnet81", "did you mean", "resnet18"]),
        ("zzzzzzzz", {}, ["timm.list_models()"]),
        ("resnet18.bogus", {}, ["resnet18.bogus", "resnet18.a1_in1k"]),
        ("qwen3_vit_88m_enc", {}, ["without a classifier", "use qwen3_vit_88m"]),
        ("test_vit", {"kwargs": {"patch_drop_rate": 0.2}}, ["student_kwargs", "patch_drop_rate=0.2"]),
        ("test_vit", {"kwargs": {"num_classes": 3, "img_size": 8}}, ["num_classes=3", "img_size=8"]),
        ("test_vit", {"kwargs": {"bogus": 3}}, ["student_kwargs", "bogus=3"]),
        ("test_resnet", {"kwargs": {"bogus": 3}, "field": "teacher"}, ["teacher_kwargs", "bogus=3"]),
        ("test_vit", {"kwargs": {"embed_dim": 7}}, ["student_kwargs={'embed_dim': 7}", "divisible"]),
        ("convmixer_768_32", {"drop_path": 0.1}, ["drop_path=0.1", "convmixer_768_32"]),
        ("test_resnet", {"kwargs": {"in_chans": 1}}, ["img_size=64", "test_resnet"]),
    ],
)
def test_refusals_name_the_field_the_value_and_the_fix(name, kwargs, words):
    message = refusal(name, **kwargs)
    assert all(word in message for word in words), message


def test_no_stochastic_depth_is_what_a_model_without_it_has():
    with torch.device("meta"):
        build_model("repvit_m0_9", num_classes=7, img_size=64, drop_path=0.0)


def test_near_names():
    assert near_names("resnet81")[0].startswith("resnet") and near_names("zzzzzzzz") == []


class TestCheckpoints:
    @pytest.fixture
    def saved(self):
        return build_model("test_resnet", num_classes=7, img_size=32)

    def built(self, path, name="test_resnet", **kwargs):
        options = {"num_classes": 7, "img_size": 32, "source": "checkpoint", "weights": str(path), "field": "teacher"}
        return build_model(name, **(options | kwargs))

    def refusal(self, path, **kwargs):
        return refusal("test_resnet", **({"img_size": 32, "source": "checkpoint", "weights": str(path)} | kwargs))

    def test_safetensors(self, saved, tmp_path):
        safetensors.torch.save_file(saved.state_dict(), tmp_path / "w.safetensors")
        assert same(self.built(tmp_path / "w.safetensors").state_dict(), saved.state_dict())

    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_torch_files_as_training_scripts_write_them(self, saved, tmp_path, wrapper, prefix):
        state = {prefix + key: value for key, value in saved.state_dict().items()}
        torch.save({"epoch": 3, wrapper: state} if wrapper else state, tmp_path / "w.pth")
        assert same(self.built(tmp_path / "w.pth").state_dict(), saved.state_dict())

    def test_averaged_weights_come_first(self, saved, tmp_path):
        worse = {key: torch.zeros_like(value) for key, value in saved.state_dict().items()}
        torch.save({"state_dict": worse, "state_dict_ema": saved.state_dict()}, tmp_path / "w.pth")
        assert same(self.built(tmp_path / "w.pth").state_dict(), saved.state_dict())

    def test_another_number_of_classes_is_named(self, tmp_path):
        torch.save(build_model("test_resnet", num_classes=11, img_size=32).state_dict(), tmp_path / "w.pth")
        message = self.refusal(tmp_path / "w.pth")
        assert "student_weights" in message and "11 classes" in message and "data has 7" in message

    def test_another_architecture_shows_a_few_differences(self, tmp_path):
        torch.save(build_model("test_resnet", num_classes=7, img_size=32).state_dict(), tmp_path / "w.pth")
        message = refusal("test_vit", source="checkpoint", weights=str(tmp_path / "w.pth"), field="teacher")
        assert "teacher_weights" in message and "is missing" in message and "more" in message and len(message) < 500

    def test_another_width_shows_the_shapes(self, saved, tmp_path):
        key = next(iter(saved.state_dict()))
        torch.save(saved.state_dict() | {key: torch.zeros(1, 2)}, tmp_path / "w.pth")
        assert f"{key} is [1, 2] and should be" in self.refusal(tmp_path / "w.pth")

    def test_missing_broken_unsafe_and_empty_files(self, saved, tmp_path):
        assert "no such file" in self.refusal(tmp_path / "none.pth")
        (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
        (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
        torch.save(saved, tmp_path / "pickled.pth")
        for name in ("broken.pth", "broken.safetensors", "pickled.pth"):
            assert "unreadable" in self.refusal(tmp_path / name)
        torch.save({"epoch": 3}, tmp_path / "empty.pth")
        assert "no state_dict" in self.refusal(tmp_path / "empty.pth")

    def test_names_of_older_timm_versions(self, tmp_path):
        small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
        name = "swin_tiny_patch4_window7_224"
        saved = build_model(name, num_classes=7, img_size=64, kwargs=small)
        old = {}
        for key, value in saved.state_dict().items():
            for stage in (1, 2, 3):
                key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
            old[key.replace("head.fc", "head")] = value
        torch.save(old, tmp_path / "w.pth")
        loaded = self.built(tmp_path / "w.pth", name, img_size=64, kwargs=small)
        assert same(loaded.state_dict(), saved.state_dict())

    def test_the_trial_pass_leaves_no_stale_cache(self, tmp_path):
        """LeViT caches attention biases in eval mode; weights loaded later must count."""
        saved = build_model("levit_128s", num_classes=7, img_size=64)
        for module in saved.modules():
            if hasattr(module, "attention_biases"):
                torch.nn.init.normal_(module.attention_biases)
        torch.save(saved.state_dict(), tmp_path / "w.pth")
        loaded = self.built(tmp_path / "w.pth", "levit_128s", img_size=64)
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(loaded.eval()(x), saved.eval()(x))

    def test_into_a_resizing_model(self, tmp_path):
        plain = timm.create_model("test_vit", num_classes=7)
        torch.save(plain.state_dict(), tmp_path / "w.pth")
        model = build_model("test_vit", num_classes=7, img_size=70)
        load_weights(model, tmp_path / "w.pth", "student")
        assert same(model.state_dict(), plain.state_dict())


def test_pretrained_weights_out_of_reach_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.hub, "ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(weights.hub, "HF_HUB_CACHE", str(tmp_path))
    message = refusal("test_vit", source="pretrained", field="teacher")
    assert "teacher_weights=PATH" in message and "teacher_source=fit" in message
    assert weights.hub.HF_HUB_OFFLINE is False
    assert "no pretrained weights" in refusal("botnet50ts_256", source="pretrained", img_size=256)


def test_normalization():
    vit, own = (timm.create_model(name) for name in ("test_vit", "test_resnet"))
    assert normalization(vit) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    own.pretrained_cfg = {}
    assert normalization(own) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet18", "cnn"),
        ("mobilenetv2_100", "cnn"),
        ("deit_tiny_patch16_224", "token"),
        ("resmlp_12_224", "token"),
        ("swin_tiny_patch4_window7_224", "token"),
        ("convnext_atto", "token"),
        ("levit_128s", "token"),
        ("hire_mlp_tiny", "token"),  # batch norm and 1x1 convolutions, but an MLP
    ],
)
def test_family(name, expected):
    with torch.device("meta"):
        assert family(timm.create_model(name)) == expected
