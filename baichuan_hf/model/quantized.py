"""What quantised layers must not be, because they would compute something else than the model."""

from __future__ import annotations

from torch import nn

from .lm_head import NormHead


# Of bitsandbytes' four-bit layers on a CPU (0.50): rows that blocks of 64 do not divide get the scales of others, and
# its kernel takes outputs by 32.
CPU_MULTIPLES = (64, 32)


def unfit_for_cpu(model: nn.Module) -> list[str]:
    """The names, without their path, of linear layers that bitsandbytes gets wrong on a CPU in four bits."""
    return list({name.rpartition(".")[2]: 0 for name, module in model.named_modules() if not _fits(module)})


def check_quantized(model: nn.Module) -> None:
    """
    Raises:
        ValueError: a NormHead is quantised, or four-bit layers are on a CPU whose shape bitsandbytes gets wrong there.
    """
    wrong = {}
    for name, module in model.named_modules():
        if isinstance(module, NormHead) and type(module.weight).__module__.startswith("torchao"):
            raise ValueError(
                f"{name} is a NormHead, which divides by the lengths of its rows, and cannot do so once these are"
                f" quantised: leave it out (modules_to_not_convert=[{name!r}]), or have it folded (baichuan-hf"
                " quantize SRC DST --method METHOD --head)."
            )
        # By its name: the library is not imported here.
        if type(module).__name__ == "Linear4bit" and module.weight.device.type == "cpu" and not _fits(module):
            wrong[name.rpartition(".")[2]] = f"{module.in_features} and {module.out_features}"
    if wrong:
        shapes = ", ".join(f"{name} has {shape}" for name, shape in wrong.items())
        skip = [rf"(.*\.)?{name}" for name in dict.fromkeys(("lm_head", *wrong))]
        raise ValueError(
            "On a CPU bitsandbytes computes four-bit layers wrongly unless their inputs are a multiple of"
            f" {CPU_MULTIPLES[0]} and their outputs of {CPU_MULTIPLES[1]}: {shapes}. Leave these out"
            f" (llm_int8_skip_modules={skip!r}), or run on a GPU."
        )


def _fits(module: nn.Module) -> bool:
    inputs, outputs = CPU_MULTIPLES
    return not isinstance(module, nn.Linear) or module.in_features % inputs == module.out_features % outputs == 0
