"""Hydra: the configuration as an experiment, and the search itself for hydra-optuna-sweeper."""

from itertools import combinations
from typing import Any

from search.exporters.base import Export, Exporter, Source, register, to_yaml
from search.exporters.ours import INSTALL, TEACHER, whole
from trainables.config import TrialConfig

APP = "trainables.adapters.hydra"
SWEEPER = {  # of hydra-optuna-sweeper 1.3, its configuration's fields
    "_target_", "sampler", "direction", "storage", "study_name", "n_trials", "n_jobs", "max_failure_rate",
    "search_space", "params", "custom_search_space",
}  # fmt: skip
BY_STAGE = ("eps_per_stage", "eps_stage")  # how our spaces name what depends on the stages that are chosen


@register
class Hydra(Exporter):
    """`config.yaml`, `experiment/best.yaml` and `sweep.yaml`, for a small application of ours."""

    name = "hydra"
    title = "Hydra, and its Optuna sweeper"

    def export(self, source: Source) -> Export:
        export = Export(
            files={},
            command=["python", "-m", APP, "--config-dir", "."],
            needs=f"{INSTALL} hydra-core",
        )
        main = {
            "defaults": ["_self_", {"experiment": "best"}],
            "teacher_weights": TEACHER,
            "teacher_store": "teacher_store",
            "trial": {},
        }
        experiment = {"trial": whole(source, export)}
        export.copies[TEACHER] = source.teacher
        params, lost = sweep_params(source.distributions, source.config)
        export.files = {
            "config.yaml": to_yaml(main, source.name),
            "experiment/best.yaml": "# @package _global_\n" + to_yaml(experiment, source.name),
        }
        if params:
            export.files["sweep.yaml"] = to_yaml(
                _sweep(source, params), f"The search of study {source.record['study']}"
            )
            export.notes.append(
                f"The search: `python -m {APP} --config-dir . --config-name sweep -m`, where hydra-optuna-sweeper 1.3 "
                "is installed. It asks for an Optuna below 3, which our own package does not run with: give it an "
                "environment of its own, with `trainables` alone."
            )
        export.notes += [f"Not in the sweep: {name}: {why}." for name, why in lost.items()]
        return export


def sweep_params(distributions: dict[str, Any], config: TrialConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The searched parameters in the sweeper's words, and those that it cannot have, with the reason.

    A sweeper's parameters are independent of one another, so stages are one choice among all sets of them, and an eps
    is one for all outputs.

    Args:
        distributions: Optuna's, by the space's names.
        config: an example of what trials have; a parameter is swept where it is one of its fields.
    """
    from optuna.distributions import CategoricalDistribution

    params, lost, stages = {}, {}, []
    for name, one in distributions.items():
        if name.startswith("stage") and name[5:].isdigit() and isinstance(one, CategoricalDistribution):
            stages.append(int(name[5:]))
        elif name.startswith(BY_STAGE):
            lost[name] = "it depends on the stages, and a sweeper's parameters depend on nothing"
        elif isinstance(one, CategoricalDistribution) and None in one.choices:
            lost[name] = "Hydra's choice() takes no null"
        elif name not in TrialConfig.model_fields:
            lost[name] = "it is no field of a trial, and only the space knows what it means"
        else:
            params[f"trial.{name}"] = _override(one)
    if stages:
        sets = [list(some) for count in range(1, len(stages) + 1) for some in combinations(sorted(stages), count)]
        params["trial.stages"] = f"choice({','.join(str(one).replace(' ', '') for one in sets)})"
        if isinstance(config.eps, list) and "trial.eps" not in params:
            lost["eps"] = "its list belongs to one set of stages"
    return params, lost


def _override(one: Any) -> str:
    """A distribution in Hydra's override grammar."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(one, CategoricalDistribution):
        return f"choice({','.join(_literal(choice) for choice in one.choices)})"
    if isinstance(one, IntDistribution) and not one.log:
        return f"range({one.low},{one.high + 1},step={one.step})"
    if getattr(one, "step", None) and not one.log:
        beyond = one.high + (1 if isinstance(one, IntDistribution) else one.step / 2)  # range() leaves its end out
        return f"range({one.low},{beyond},step={one.step})"
    plain = f"interval({one.low},{one.high})"
    if isinstance(one, IntDistribution):
        plain = f"int({plain})"
    return f"tag(log,{plain})" if one.log else plain


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).replace(" ", "")


def _sweep(source: Source, params: dict[str, str]) -> dict[str, Any]:
    direction = "maximize" if source.config.objective.startswith("max") else "minimize"
    return {
        "defaults": [
            "config",
            "_self_",
            {"override hydra/sweeper": "optuna"},
            {"override hydra/sweeper/sampler": "tpe"},
        ],
        "trial": {"eps": 1.0} if isinstance(source.config.eps, list) else {},
        "hydra": {
            "sweeper": {
                "sampler": {"seed": source.config.seed},
                "direction": direction,
                "study_name": source.record["study"],
                "storage": None,
                "n_trials": max(1, source.trials),
                "n_jobs": 1,
                "params": params,
            }
        },
    }
