"""The TinyTL transform: which parameters train, and frozen BatchNorm folded into its convolution.

A frozen BatchNorm is y = scale * x + shift with constants. Folded, the scale goes into the convolution's
frozen weight and the shift becomes the convolution's bias: the bias that TinyTL trains.
"""

from __future__ import annotations

import fnmatch

import torch
from torch import nn

from tinytl_edge.runtime.errors import UsageError

from .lite_residual import ATTRIBUTE

METHODS = ("last", "bias", "lite-residual", "lite-residual+bias", "norm+last", "full")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def uses_lite_residuals(method: str) -> bool:
    """Does this method give blocks lite residual modules?"""
    return method.startswith(ATTRIBUTE.replace("_", "-"))


def choose_trainables(model: nn.Module, method: str, classifier: str, also: tuple[str, ...] = ()) -> None:
    """Set `requires_grad` of every parameter as `method` says; run before `fold_batchnorm`.

    Args:
        classifier: name of the classifier's submodule; it always trains.
        also: name patterns of further parameters to train.

    Raises:
        UsageError: the method is unknown, or a pattern matches no parameter.
    """
    if method not in METHODS:
        raise UsageError(f"'{method}' is no method: choose one of {', '.join(METHODS)}.")
    for pattern in also:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in model.named_parameters()):
            raise UsageError(f"--train '{pattern}' matches no parameter of the model.")
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}" if module_name else name
            parameter.requires_grad = (
                module_name == classifier
                or _trains(method, module_name, module, name)
                or any(fnmatch.fnmatchcase(full_name, pattern) for pattern in also)
            )


def _trains(method: str, module_name: str, module: nn.Module, name: str) -> bool:
    path = module_name.split(".")
    if ATTRIBUTE in path and uses_lite_residuals(method):
        # With biases trained too, norm2's bias is redundant: the block's last bias does the same.
        redundant = method == "lite-residual+bias" and path[-1] == "norm2" and name == "bias"
        return not redundant
    if method == "full":
        return True
    if method == "norm+last":
        return isinstance(module, _NORMS)
    return method in ("bias", "lite-residual+bias") and name == "bias"


class ChannelAffine(nn.Module):
    """y = weight * x + bias, channel by channel: a BatchNorm whose statistics are constants.

    Takes [N, C, ...]; `weight` and `bias` are [C].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def fold_batchnorm(model: nn.Module, image: torch.Tensor) -> None:
    """Freeze every BatchNorm in its running statistics and fold it where it follows a convolution.

    Which convolution feeds which BatchNorm is found by running the model once on `image` (float32
    [1, 3, H, W]); a second run checks that the outputs stayed the same. Requirements of gradients carry
    over: the BatchNorm's shift to the convolution's bias. Where only the scale trains (norm + last) the
    statistics alone are folded and scale and shift stay as a `ChannelAffine` in the BatchNorm's place.

    Raises:
        UsageError: the model computes something else afterwards, so a BatchNorm or convolution is used twice.
    """
    model.eval()
    with torch.no_grad():
        before, source = _find_convolutions(model, image.clone())  # it may change its input in place
        replacements: dict[nn.Module, nn.Module] = {}
        for name, norm in list(model.named_modules(remove_duplicate=False)):
            if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            if norm not in replacements:
                conv = source.get(name)
                replacements[norm] = _affine(norm) if conv is None else _fold(conv, norm)
            _replace(model, name, replacements[norm])
        after = model(image.clone())
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        raise UsageError(
            "The model's BatchNorm could not be folded: a convolution's output is used by more than its BatchNorm."
        )


def _find_convolutions(model: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, nn.Conv2d]]:
    """The model's output, and by BatchNorm name the convolution that feeds it and nothing else."""
    producers: dict[int, tuple[torch.Tensor, int, nn.Conv2d]] = {}
    source: dict[str, nn.Conv2d] = {}
    calls: dict[nn.Module, int] = {}
    handles = []

    def after_conv(conv: nn.Module, inputs: object, output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls[conv] = calls.get(conv, 0) + 1
        # The tensor is held so that its id stays its own; its version tells if it was changed in place since.
        producers[id(output)] = (output, output._version, conv)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def before_norm(norm: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                calls[norm] = calls.get(norm, 0) + 1
                _, version, conv = producers.get(id(inputs[0]), (None, -1, None))
                if conv is not None and inputs[0]._version == version and calls[norm] == 1:
                    source[name] = conv
                else:
                    source.pop(name, None)

            handles.append(module.register_forward_pre_hook(before_norm))
    output: torch.Tensor = model(image)
    for handle in handles:
        handle.remove()
    feeds = list(source.values())
    return output, {n: c for n, c in source.items() if calls[c] == 1 and sum(c is other for other in feeds) == 1}


def _scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """1/sigma and -mu/sigma of the running statistics; [C] each."""
    if norm.running_mean is None or norm.running_var is None:
        raise UsageError("A BatchNorm without running statistics cannot be frozen.")
    inverse = (norm.running_var + norm.eps).rsqrt()
    return inverse, -norm.running_mean * inverse


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    inverse, offset = _scale_and_shift(norm)
    weight = norm.weight if norm.affine else torch.ones_like(inverse)
    bias = norm.bias if norm.affine else torch.zeros_like(inverse)
    affine = ChannelAffine(weight * inverse, bias + weight * offset)
    affine.weight.requires_grad = norm.affine and norm.weight.requires_grad
    affine.bias.requires_grad = norm.affine and norm.bias.requires_grad
    return affine


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    scale, shift = _scale_and_shift(norm)
    conv_bias_trains = conv.bias is not None and conv.bias.requires_grad
    bias_trains = norm.affine and norm.bias.requires_grad
    replacement: nn.Module = nn.Identity()
    if norm.affine and norm.weight.requires_grad and not conv.weight.requires_grad:
        replacement = ChannelAffine(norm.weight.detach().clone(), norm.bias.detach().clone())
        replacement.bias.requires_grad = bias_trains
        bias_trains = False
    elif norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    weight_trains = conv.weight.requires_grad
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=weight_trains)
    conv.bias = nn.Parameter(shift.clone(), requires_grad=bias_trains or conv_bias_trains)
    return replacement


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).add_module(child, module)


def parameter_group(name: str, classifier: str) -> str:
    """Which learning rate a parameter takes: 'classifier', 'lite_residual', 'bias' or 'weight'."""
    module, _, leaf = name.rpartition(".")
    if module == classifier:
        return "classifier"
    if ATTRIBUTE in module.split("."):
        return ATTRIBUTE
    return "bias" if leaf == "bias" else "weight"


def round_frozen_weights(model: nn.Module) -> None:
    """Round every frozen weight of a convolution or linear layer to 8 bits, one scale an output channel.

    The values stay float32 in steps of max |weight| / 127, so every runtime computes the same function, and the
    step compiler finds the 8 bits again. Run behind `fold_batchnorm`.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.requires_grad:
                weight = module.weight
                largest = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1))
                scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
                weight.copy_((weight / scale).round() * scale)
