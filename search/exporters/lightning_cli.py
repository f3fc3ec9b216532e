"""Lightning: a LightningModule of ours, started by LightningCLI."""

from search.exporters.base import Export, Exporter, Source, decisive, register, to_yaml
from search.exporters.ours import INSTALL, teacher_file, whole


@register
class Lightning(Exporter):
    """A YAML file for LightningCLI."""

    name = "lightning"
    title = "PyTorch Lightning, by LightningCLI"

    def export(self, source: Source) -> Export:
        config = source.config
        export = Export(
            files={},
            command=["python", "-m", "trainables.adapters.lightning", "fit", "--config", "lightning.yaml"],
            needs=f"{INSTALL} lightning 'jsonargparse[signatures]'",
            exact={"epochs": "`trainer.max_epochs`"},
        )
        if "clip_grad" in decisive(config):
            export.exact["clip_grad"] = "`trainer.gradient_clip_val`"
        trainer = {
            "max_epochs": config.epochs,
            "accelerator": "auto",
            "devices": 1,
            "precision": _precision(config),
            "gradient_clip_val": config.clip_grad,
            "gradient_clip_algorithm": "norm",
            "default_root_dir": "lightning",
            "num_sanity_val_steps": 0,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "lightning"}},
        }
        if "model_ema" in decisive(config):
            export.approximated["model_ema"] = "the average alone is judged and kept; in a trial the better of both"
        model = {"config": whole(source, export), "teacher_weights": teacher_file(source)}
        export.files["lightning.yaml"] = to_yaml({"trainer": trainer, "model": model}, source.name)
        export.notes.append("The student of the last epoch is `lightning/student.safetensors`.")
        return export


def _precision(config) -> str:
    return {"bfloat16": "bf16-mixed", "float16": "16-mixed"}[config.amp_dtype] if config.amp else "32-true"
