"""Where a network computes, and what makes training faster on a CPU; the arithmetic is the same but for rounding."""

import contextlib
import ctypes
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.nn import functional as F

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
CHANNELS = 8  # of a convolution's input, from which copies pay off: what AVX2 computes at once


def keep_memory() -> None:
    """Let the allocator keep what a training step frees; other C libraries than glibc are left as they are.

    glibc gives large blocks back to the kernel, which clears each page again when the next step asks for it: that
    took a third of the time of a step on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_MAX, 0)
        allocator.mallopt(M_TRIM_THRESHOLD, -1)


def processes() -> PartialState:
    """Say which processes train together, and on what device this one does: a GPU where torch has one."""
    return PartialState(cpu=not torch.cuda.is_available())


def device_of(network: nn.Module) -> torch.device:
    """Say where a network's weights lie, and hence where what it is given must lie."""
    return next(network.parameters()).device


def multiplies_bf16() -> bool:
    """Say whether this machine's CPU has instructions for bfloat16: AVX-512's, AMX's or ARM's."""
    told = torch.cpu.get_capabilities()
    return any(told.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def faster_in_bf16(network: nn.Module) -> bool:
    """Say whether this machine's CPU trains the network faster in bfloat16.

    It does where it multiplies bfloat16 itself and every convolution is dense: `covid_cnn_1` became 1.8 times as fast
    (docs/measured/throughput.json), the depthwise ones of MobileNetV2 a quarter slower. Weights, loss and optimiser
    stay in float32. A GPU trains in float32 unless it is told otherwise.
    """
    dense = all(module.groups == 1 for module in network.modules() if isinstance(module, nn.Conv2d))
    return multiplies_bf16() and dense and not torch.cuda.is_available()


def arrange(network: nn.Module, bf16: bool) -> nn.Module:
    """Lay the network out as this machine trains it fastest, in place; parameters keep their names.

    That is with channels last and, where the CPU has AVX2 and no more, with gradients of kernels from copies.
    """
    told = torch.cpu.get_capabilities()
    if told.get("avx2") and not told.get("avx512_f") and not bf16 and not torch.cuda.is_available():
        for module in filter(_gains_by_copies, network.modules()):
            module.__class__ = _Conv2d
    return network.to(memory_format=torch.channels_last)


def keep_head_precise(head: nn.Module) -> None:
    """Let the last layer compute in float32 also where all before it is in bfloat16, in place.

    Weights of a least-squares head nearly cancel: rounded to bfloat16 they moved the log-odds by more than 1.
    """
    forward = head.forward

    def precise(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return forward(features.float())

    head.forward = precise


def _gains_by_copies(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.in_channels >= CHANNELS
        and max(module.kernel_size) > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class _Conv2d(nn.Conv2d):
    """A convolution whose kernel's gradient is computed on copies with channels first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


class _Convolution(torch.autograd.Function):
    """Compute a convolution with channels last and the gradient of its kernel with channels first.

    oneDNN's AVX2 code computes the former twice as fast so, and the latter half as fast.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_input, *of_parameters = ctx.needs_input_grad[:3]
        rest = ([weight.shape[0]], *ctx.geometry, False, [0, 0], 1)
        backward = torch.ops.aten.convolution_backward
        for_x = for_weight = for_bias = None
        if of_input:
            for_x, _, _ = backward(gradient, x, weight, *rest, [True, False, False])
        if any(of_parameters):
            copies = (tensor.contiguous() for tensor in (gradient, x, weight))  # channels first
            _, for_weight, for_bias = backward(*copies, *rest, [False, *of_parameters])
        return for_x, for_weight, for_bias, None, None, None
