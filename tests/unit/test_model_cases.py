"""Rows of the table of models are calls in which every argument counts: what is not looked at is not tested."""

import pytest
import torch
from model_cases import CASES

SUPPORTED = [case for case in CASES if not case.refused]
UNUSED = {
    "LTX-2 T2V": {"sigma"},  # modulates text in LTX-2.3 alone
    "LTX-2 I2V": {"sigma"},
}


def other(value):
    """Another value of the same kind; of a mask, another second word."""
    if value.dtype == torch.bool or not value.is_floating_point():
        changed = value.clone()
        changed[..., 1] = 1 - changed[..., 1].long()  # the second word
        return changed
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(11), dtype=value.dtype)
    return value + noise * (50 if value.ndim < 2 else 1)  # of a timestep, 1 is little


def output(case, transformer, arguments):
    with torch.no_grad(), transformer.cache_context(case.branches[0], step_index=0, num_inference_steps=10):
        return transformer(**arguments, return_dict=False)[0]


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_every_tensor_of_a_call_reaches_the_output(case):
    transformer = case.transformer()
    arguments = case.inputs(transformer, case.noise(transformer), 700.0, case.branches[0])
    plain = output(case, transformer, arguments)
    tensors = {name for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    ignored = {
        name
        for name in tensors
        if torch.equal(output(case, transformer, {**arguments, name: other(arguments[name])}), plain)
    }
    assert ignored == UNUSED.get(case.name, set())
