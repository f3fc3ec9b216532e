"""One step of training: forward, losses, backward and update; on a GPU replayed as one CUDA graph."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.acceleration import forget_compiled, precision
from trainables.config import TrialConfig
from trainables.distillers import distillers_of
from trainables.distillers.base import TeacherOutput
from trainables.errors import one_line

WARM_UP = 3  # steps before they are captured, in which cuDNN and the optimizer set themselves up
WAITS = "synchronizing CUDA operation"  # in PyTorch's warning of one
NOT_CAPTURED = "CUDA error: a step could not be captured as a graph"  # after which the process is not to be used


class TrainStep:
    """Trains a model on one batch after another.

    A small student leaves a GPU waiting for Python, which launches a thousand kernels a step. Where `cuda_graph` asks
    for it and the trial allows it, the first steps run as they are; then one is captured and replayed ever after, with
    the batch copied to where the captured one lay. Replayed kernels are the same, and so are their numbers. A step that
    waits for the device is seen before, and goes on as it is.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Args:
        module: gives the terms of the loss, as `Taught.forward`; DistributedDataParallel may be around it.
        optimizer: as `make_optimizer` gives it.
        config: the recipe's precision and clipping, with the device's defaults filled in.
        device: where the model is.
        warn: told, in one line, where a step cannot be captured or compiled.

    Attributes:
        scaler: of float16's gradients, with a state to keep.
        names: of the terms, in the order of the values; known from the first step on.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrialConfig,
        device: torch.device,
        warn: Callable[[str], None],
    ):
        self._module, self._optimizer, self._config, self._device, self._warn = module, optimizer, config, device, warn
        scaled = bool(config.amp) and config.amp_dtype == "float16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.names: tuple[str, ...] = ()
        self._parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._replays = replayable(config, optimizer, device) and not isinstance(module, DistributedDataParallel)
        self._made, self._graph = 0, None
        if self._replays:
            self._stream = torch.cuda.Stream(device)
            self._rates = torch.zeros(len(optimizer.param_groups), device=device)

    def __call__(
        self, images: Tensor, target: Tensor, teacher: TeacherOutput | None, index: Tensor, number: int, epoch: int
    ) -> Tensor:
        """Makes one step; nothing waits for the device.

        Args:
            images, target, teacher, index, number, epoch: as for `Taught.forward`.

        Returns:
            The values of the terms in `names`, float32 [terms], without a gradient; valid until the next step.

        Raises:
            RuntimeError: capturing failed, `NOT_CAPTURED`; this process must be left, and `cuda_graph` be off then.
        """
        batch = [images, target, index, *(teacher.tensors() if teacher else [])]
        if not self._replays:
            return self._eager(batch, teacher, number, epoch)
        waiting = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(waiting)
        with torch.cuda.stream(self._stream):
            self._set_rates()
            if self._graph is None and self._made == WARM_UP:
                self._capture(batch, teacher, number, epoch)
            if self._graph is None:
                self._made += 1
                eager = self._watched if self._made == WARM_UP else self._eager
                values = eager(batch, teacher, number, epoch)
            else:
                torch._foreach_copy_(self._static, batch)
                self._graph.replay()
                values = self._values
        waiting.wait_stream(self._stream)
        return values

    def _eager(self, batch: list[Tensor], teacher: TeacherOutput | None, number: int, epoch: int) -> Tensor:
        self._optimizer.zero_grad()
        if not self._config.torchcompile:
            return self._forward_and_back(batch, teacher, number, epoch)
        try:
            return self._forward_and_back(batch, teacher, number, epoch)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._warn(f"torchcompile: {self._config.student} cannot be compiled: {one_line(error)}")
            forget_compiled(self._module)
            self._optimizer.zero_grad()
            return self._forward_and_back(batch, teacher, number, epoch)

    def _watched(self, batch: list[Tensor], teacher: TeacherOutput | None, number: int, epoch: int) -> Tensor:
        """A step as it is, and whether it waits for the device: such a one must not be captured.
        Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.set_sync_debug_mode.html
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                values = self._eager(batch, teacher, number, epoch)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any(WAITS in str(one.message) for one in told):
            self._replays = False
            self._warn(f"cuda_graph: a step of {self._config.student} waits for the device and is not replayed")
        return values

    def _forward_and_back(self, batch: list[Tensor], teacher: TeacherOutput | None, number: int, epoch: int) -> Tensor:
        images, target, index, *answer = batch
        with precision(self._config, self._device):
            terms = self._module(images, target, teacher and teacher.of(answer), index, number, epoch)
        self.scaler.scale(terms["loss"]).backward()
        if self._config.clip_grad:
            self.scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._config.clip_grad)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self.names = tuple(terms)
        return torch.stack([value.detach().float() for value in terms.values()])

    def _capture(self, batch: list[Tensor], teacher: TeacherOutput | None, number: int, epoch: int) -> None:
        """Captures a step on copies of a batch, without making it."""
        self._static = [tensor.clone() for tensor in batch]
        self._optimizer.zero_grad()  # so that the captured backward makes gradients of its own
        graph = torch.cuda.CUDAGraph()
        try:  # other threads go on copying batches and answers meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._values = self._forward_and_back(self._static, teacher, number, epoch)
        except RuntimeError as error:  # PyTorch leaves its allocator and generators amid the capture
            raise RuntimeError(f"{NOT_CAPTURED}, cuda_graph=False goes without: {one_line(error)}") from error
        self._graph = graph

    def _set_rates(self) -> None:
        """Brings the schedule's rates to where a captured update reads them."""
        groups = self._optimizer.param_groups
        rates = torch.tensor([float(group["lr"]) for group in groups])
        self._rates.copy_(rates.pin_memory(), non_blocking=True)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate


def replayable(config: TrialConfig, optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether each step of a trial launches the same kernels, so that one may stand for all.

    Not so where a number that changes is read outside the device: a scale of float16's gradients, a step's or an
    epoch's number, an optimizer's own count.
    """
    first = optimizer.param_groups[0]
    on_device = first.get("capturable") or (isinstance(optimizer, torch.optim.SGD) and first.get("fused"))
    return bool(
        config.cuda_graph
        and device.type == "cuda"
        and type(optimizer).__module__.startswith("torch.optim")  # timm's own read their rates as numbers
        and on_device
        and not (config.amp and config.amp_dtype == "float16")
        and not config.curriculum_temperature
        and all(distiller.replays(config) for distiller in distillers_of(config.distiller))
    )
