"""From a space file to its study."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

from search.study import Scale, Study
from trainables.errors import InputError


def load_space(path: str) -> Study:
    """Runs a space file and returns its `STUDY`.

    Raises:
        InputError: no such file, not a file of this machine, a syntax error (with its line), an error while it runs,
            or no `STUDY` in it.
    """
    file = Path(path)
    if "://" in path:
        raise InputError(f"--space: '{path}' is a URL; a space is code and is only read from a file of this machine")
    if not file.is_file():
        ours = sorted(Path(__file__).parents[1].glob("spaces/*.py"))
        near = ", ".join(str(other) for other in ours if "STUDY" in other.read_text())
        raise InputError(f"--space: no file '{path}'; there are {near}")
    name = f"space_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_AsItStands(name, str(file)))
    module = importlib.util.module_from_spec(spec)
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"--space: syntax error in {path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"--space: {path} fails: {type(error).__name__}: {error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise InputError(f"--space: {path} defines no STUDY = Study(...)")
    for name, scale in study.scales.items():
        if not isinstance(scale, Scale):
            raise InputError(f"scales: '{name}' in {path} is a {type(scale).__name__}; write Scale(field=value, ...)")
    return study


class _AsItStands(SourceFileLoader):
    """Runs a file as it is now, without cached bytecode: that tells two versions apart by second and size only."""

    def path_stats(self, path):
        raise OSError  # no bytecode then: https://docs.python.org/3/library/importlib.html#importlib.abc.SourceLoader.path_stats
