"""The trained student as a graph, for runtimes without its Python code; each is compared with PyTorch as it is written.

Sources: https://docs.pytorch.org/docs/stable/export.html, https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search.exporters.base import Source
from trainables.config import TrialConfig
from trainables.errors import InputError, StudyError, one_line

if TYPE_CHECKING:  # naming the targets goes without torch
    from torch import Tensor, nn

    Graph = Callable[[Tensor], Tensor]

TOLERANCE = 1e-3  # of a logit, over the largest one
COMPARED = (1, 5)  # batches that are compared; the graph is made with another one
PACKAGES = "pip install onnx onnxscript onnxruntime"


def write_torch_export(source: Source, path: Path) -> float:
    """Writes the student as torch.export's program, for batches of any size.

    Returns:
        The largest difference from PyTorch's logits, over the largest logit.

    Raises:
        StudyError: it cannot be exported, or its logits are others.
    """
    import torch

    model = trained_student(source.config, len(source.classes), source.weights)

    def written() -> "Graph":
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(model, (_images(source.config, 2),), dynamic_shapes=(batch,))
        torch.export.save(program, path)
        return torch.export.load(path).module()

    return compared("torch.export", written, model, source.config)


def write_onnx(source: Source, path: Path) -> float:
    """Writes the student as ONNX, input `images` and output `logits`, for batches of any size; run by onnxruntime.

    Returns:
        As `write_torch_export`.

    Raises:
        InputError: a package is missing.
        StudyError: as `write_torch_export`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--onnx: {error.name} is missing; {PACKAGES}") from error
    import torch

    model = trained_student(source.config, len(source.classes), source.weights)

    def written() -> "Graph":
        torch.onnx.export(
            model,
            (_images(source.config, 2),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return compared("onnx", written, model, source.config)


def trained_student(config: TrialConfig, classes: int, weights: Path) -> "nn.Module":
    """The plain student as it was trained, without projectors, for evaluation.

    Raises:
        InputError: it can no longer be built, or the weights do not fit it.
    """
    from trainables.build import build_model

    return build_model(
        config.student,
        num_classes=classes,
        img_size=config.img_size,
        source="checkpoint",
        weights=str(weights),
        kwargs=config.student_kwargs,
        taps=config.taps,
    ).eval()


def compared(form: str, write: "Callable[[], Graph]", model: "nn.Module", config: TrialConfig) -> float:
    """Has a graph written and compares its logits with PyTorch's, for other batches than it was made with.

    Args:
        form: what it is, for the message.
        write: writes it, and gives what runs it.
        model, config: the student.

    Returns:
        As `write_torch_export`.

    Raises:
        StudyError: it cannot be exported, or its logits are others.
    """
    import torch

    try:
        graph, worst = write(), 0.0
        for count in COMPARED:
            images = _images(config, count)
            with torch.no_grad():
                expected = model(images)
            worst = max(worst, ((graph(images) - expected).abs().max() / expected.abs().max()).item())
    except Exception as error:  # a model's code may be beyond an exporter in any way it likes
        raise StudyError(f"{config.student} cannot be exported by {form}: {one_line(error)}") from error
    if worst > TOLERANCE:
        raise StudyError(f"the logits of {config.student} by {form} are off by {worst:.1e} of the largest")
    return worst


def _images(config: TrialConfig, count: int) -> "Tensor":
    import torch

    side = config.img_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
