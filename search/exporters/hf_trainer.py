"""The Hugging Face Trainer: its arguments as JSON, and a subclass of ours."""

from search.exporters.base import Export, Exporter, Source, decisive, register, to_json
from search.exporters.ours import INSTALL, teacher_file, whole


@register
class HFTrainer(Exporter):
    """`training_args.json` for TrainingArguments, and `distill.json`, for which there are no keys of the Trainer's."""

    name = "hf"
    title = "the Hugging Face Trainer"

    def export(self, source: Source) -> Export:
        config = source.config
        export = Export(
            files={},
            command=["python", "-m", "trainables.adapters.hf", "training_args.json", "distill.json"],
            needs=f"{INSTALL} transformers accelerate",
            exact={"epochs": "`num_train_epochs`, and `config.epochs`, by which the rates change: change both"},
        )
        arguments = {
            "output_dir": "hf",
            "num_train_epochs": float(config.epochs),
            "per_device_train_batch_size": config.batch_size,
            "learning_rate": config.lr,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.clip_grad or 0.0,
            "seed": config.seed,
            "bf16": bool(config.amp) and config.amp_dtype == "bfloat16",
            "fp16": bool(config.amp) and config.amp_dtype == "float16",
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "logging_strategy": "epoch",
            "report_to": "none",
            "remove_unused_columns": False,
        }
        if "clip_grad" in decisive(config):
            export.exact["clip_grad"] = "`max_grad_norm`"
        for name in decisive(config) & {"model_ema", "model_ema_decay"}:
            export.dropped[name] = "the Trainer keeps no average of the weights"
        distill = {"config": whole(source, export), "teacher_weights": teacher_file(source)}
        export.files = {"training_args.json": to_json(arguments), "distill.json": to_json(distill)}
        export.notes += [
            "The student of the last epoch is `hf/student.safetensors`.",
            "Optimizer, schedule and batches are those of `distill.json`; `learning_rate` and `weight_decay` are there "
            "for whoever reads the Trainer's arguments.",
        ]
        return export
