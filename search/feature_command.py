"""The command behind `search/features.py`: from flags to two models, their comparison, its files and its MLflow run."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from search.feature_report import NUMBERS, PICTURE, PRETRAINED, ROLES, SCRATCH, metrics, print_report, write_report
from search.paths import import_from_current_folder, writable
from search.resume import known_studies
from search.settings import describe
from search.storage import TEACHERS, Storage
from search.terminal import noise_to, person_console
from search.tracking.credentials import set_aside, shown
from search.tracking.facts import as_text, finite
from search.tracking.store import check_tracking, connect, experiment_exists, first_line
from search.values import Part, parse_sets
from trainables.config import DataFields, data_fields
from trainables.errors import InputError

if TYPE_CHECKING:
    from trainables.similarity import Comparison

FLAGS = ("teacher", "student", "teacher_weights", "student_weights", "data", "data_dir", "images", "batch_size")
FOLDER = EXPERIMENT = "features"
LEAST_BATCH = 4  # as in trainables.similarity, which takes torch along


class FeatureFields(DataFields):
    """What is compared; what a flag does not set is reached by `--set FIELD=VALUE`."""

    teacher: str
    student: str
    teacher_weights: str = SCRATCH  # a checkpoint's path, `pretrained` or `scratch`
    student_weights: str = SCRATCH
    teacher_kwargs: dict[str, Any] = {}  # further arguments of timm.create_model
    student_kwargs: dict[str, Any] = {}
    images: int | None = None  # of the holdout; None: all
    batch_size: int = 64
    seed: int = Field(0, ge=0)  # of random weights

    @field_validator("images", "batch_size")
    @classmethod
    def _enough_for_hsic(cls, images):
        if images is not None and images < LEAST_BATCH:
            raise ValueError(f"is too few: unbiased HSIC needs {LEAST_BATCH} or more images a batch")
        return images


def run_features(arguments) -> int:
    """Compares two models as the flags say; returns the exit code.

    Raises:
        InputError: what is wrong with the flags, the study, the data, the models or the surroundings.
    """
    import_from_current_folder()
    storage, uri = Storage(arguments.storage), set_aside(arguments.tracking_uri or "")
    if not arguments.out:
        storage.check(write=True)
    study = _study(storage, arguments.study) if arguments.study else {}
    fields = _resolve(arguments, study)
    pair = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{fields.teacher}-{fields.student}").strip("-.")
    out = arguments.out or storage.root / FOLDER / (arguments.study or pair)
    if not writable(out):
        raise InputError(f"--out: {out} cannot be written; give a folder that can")
    if uri:
        _check_experiment(uri)
    console = person_console()
    with noise_to(Path(os.devnull)):
        result, facts = _compare(fields, console)
    facts["study"] = arguments.study
    if study and facts["data_fingerprint"] != study["data_fingerprint"]:
        console.print("note: these are not the images by which the study ranked its trials")
    write_report(result, facts, out, with_itself=arguments.self)
    print_report(console, result, facts)
    if not arguments.out:
        storage.give(out / PICTURE, out / NUMBERS)
    console.print(f"files:      {arguments.out or storage.shown(out)}/ ({PICTURE}, {NUMBERS})", markup=False)
    return _log(uri, storage.root, result, facts, out) if uri else 0


def _study(storage: Storage, name: str) -> dict[str, Any]:
    """A finished study's models, weights and data as `fields`, and the fingerprint of its data."""
    from trainables.teacher import ABOUT, WEIGHTS

    folder = storage.bring(name)
    if not folder.is_dir():
        raise InputError(f"--study: there is no study '{name}' in {storage}{known_studies(storage.root)}")
    if not (folder / "best.yaml").exists():
        raise InputError(f"--study: '{name}' has no finished best trial yet")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    fields = {key: value for key, value in best["config"].items() if key in FeatureFields.model_fields}
    del fields["batch_size"]  # the recipe's
    teachers = (storage.root / TEACHERS).glob(f"*/{ABOUT}")
    kept = (path for path in teachers if json.loads(path.read_text())["sha256"] == best["teacher_sha256"])
    about = next(kept, None)
    fields["teacher_weights"] = str(storage.fetch(about.with_name(WEIGHTS))) if about else None
    fields["student_weights"] = str(folder / "best_student.safetensors")
    return {"fields": fields, "data_fingerprint": best["data_fingerprint"]}


def _resolve(arguments, study: dict[str, Any]) -> FeatureFields:
    """Lays the study's fields, the flags and --set over one another and checks the result."""
    problems: list[str] = []
    flags = {flag: getattr(arguments, flag) for flag in FLAGS if getattr(arguments, flag) is not None}
    given = flags | parse_sets(arguments.set, problems)
    merged = dict(study.get("fields", {}))
    for role in ROLES:
        if role in merged and given.get(role, merged[role]) != merged[role]:  # not the study's: nor its weights
            merged = {key: value for key, value in merged.items() if not key.startswith(f"{role}_")}
    for key, value in given.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, Part) else value
    if "teacher_weights" in merged and merged["teacher_weights"] is None:
        problems.append("--study: the storage no longer has its teacher's weights; give --teacher-weights FILE")
        del merged["teacher_weights"]
    try:
        fields = FeatureFields(**merged)
    except ValidationError as error:
        problems += describe(error, set(FeatureFields.model_fields))
    if problems:
        raise InputError(problems)
    return fields


def _compare(fields: FeatureFields, console) -> tuple["Comparison", dict[str, Any]]:
    """The comparison, and on what it was made: `settings`, `data` in words, `data_fingerprint`."""
    import numpy as np
    import torch

    from trainables.data import load_splits
    from trainables.similarity import compare
    from trainables.stream import eval_loader

    splits = load_splits(data_fields(fields))
    num_classes = len(splits.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # the student's random weights are those that a study's trials start from, the teacher's another draw
    student = _build(fields, "student", num_classes, fields.seed).to(device)
    teacher = _build(fields, "teacher", num_classes, fields.seed + 1).to(device)
    # shuffled, since data lie sorted by class, and a batch must be a sample of all of them
    order = np.random.default_rng(fields.data_seed % 2**64).permutation(len(splits.holdout))
    chosen = splits.holdout.subset(order[: fields.images])
    if len(chosen) < LEAST_BATCH:
        raise InputError(
            f"holdout={fields.holdout:g} has {len(chosen)} images and unbiased HSIC needs {LEAST_BATCH} or more; "
            "raise it, or max_images"
        )
    console.print(f"comparing {fields.teacher} and {fields.student} on {len(chosen)} images of the holdout")
    pixels = eval_loader(
        chosen,
        fields.img_size,
        mean=(0.0, 0.0, 0.0),  # each model normalises them in its own way
        std=(1.0, 1.0, 1.0),
        batch_size=fields.batch_size,
        loader_workers=fields.loader_workers,
    )
    result = compare(teacher, student, pixels, num_classes, device)
    facts = {
        "settings": fields.model_dump(),
        "data": splits.description,
        "data_fingerprint": splits.fingerprint,
    }
    return result, facts


def _build(fields: FeatureFields, role: str, num_classes: int, seed: int):
    """A model with its weights; pretrained ones keep the head they were trained with."""
    import timm

    from trainables.build import build_model
    from trainables.checkpoint import seed_everything

    name, weights = getattr(fields, role), getattr(fields, f"{role}_weights")
    pretrained, scratch = weights == PRETRAINED, weights == SCRATCH
    if pretrained and timm.is_model(name):
        num_classes = timm.get_pretrained_cfg(name).num_classes or num_classes
    seed_everything(seed)
    try:
        return build_model(
            name,
            num_classes=num_classes,
            img_size=fields.img_size,
            source=weights if pretrained or scratch else "checkpoint",
            weights=None if pretrained or scratch else weights,
            kwargs=getattr(fields, f"{role}_kwargs"),
            field=role,
        )
    except InputError as error:
        if not pretrained or "pretrained weights" not in str(error):
            raise
        problem = str(error).partition("; give ")[0]  # what a study advises is no field here
        raise InputError(f"{problem}; give --{role}-weights FILE, or leave it out for random weights") from error


def _check_experiment(uri: str) -> None:
    check_tracking(uri)
    if not experiment_exists(uri, EXPERIMENT):
        return
    if connect(uri).get_experiment_by_name(EXPERIMENT).lifecycle_stage == "deleted":
        raise InputError(f"tracking_uri: the experiment '{EXPERIMENT}' at {shown(uri)} was deleted; restore it")


def _log(uri: str, storage: Path, result: "Comparison", facts: dict[str, Any], out: Path) -> int:
    """Logs a run to MLflow; where that fails the files stand all the same. Returns the exit code."""
    try:
        from mlflow.entities import Metric, Param, RunTag

        client, settings = connect(uri), facts["settings"]
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            server = uri.startswith("http")  # has a place of its own for artifacts
            location = None if server else (storage / "artifacts" / EXPERIMENT).resolve().as_uri()
            experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        run_id = client.create_run(experiment_id, run_name=f"{settings['teacher']} {settings['student']}").info.run_id
        tags = {"role": "features", "study": facts["study"], "data": facts["data"]}
        tags |= {"data_fingerprint": facts["data_fingerprint"]}
        now = int(time.time() * 1000)
        client.log_batch(
            run_id,
            [Metric(key, value, now, 0) for key, value in finite(metrics(result)).items() if value is not None],
            [Param(key, as_text(value)) for key, value in settings.items()],
            [RunTag(key, value) for key, value in tags.items() if value is not None],
        )
        for name in (PICTURE, NUMBERS):
            client.log_artifact(run_id, str(out / name))
        client.set_terminated(run_id)
    except Exception as error:  # each store and driver has its own
        problem = f"tracking_uri: {shown(uri)} fails ({first_line(error)}); the files are in {out} all the same"
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0
