"""Rows of the table of models are calls in which every argument and every weight counts: the rest is not tested."""

import re

import pytest
import torch
from model_cases import CASES

SUPPORTED = [case for case in CASES if not case.refused]
UNUSED = {
    "LTX-2 T2V": {"sigma"},  # modulates text in LTX-2.3 alone
    "LTX-2 I2V": {"sigma"},
}
_LAST_TEXT = r"transformer_blocks\.2\.(attn1?\.(add_q_proj|norm_added_q|to_add_out)|(ff_context|txt_mlp)\.)"
SILENT = {
    "HunyuanVideo 1.5 T2V": rf"{_LAST_TEXT}|image_embedder\.",  # what it makes of no image is masked
    "HunyuanVideo 1.5 I2V": _LAST_TEXT,
    "Mochi": _LAST_TEXT,
    "Qwen-Image": _LAST_TEXT,
    "Qwen-Image Edit": _LAST_TEXT,
}
"""Weights without a say by design: the text's stream of the last block goes nowhere."""


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


def unused_weights(case):
    """Modules whose weights have no say in the outputs: no gradient reaches them."""
    transformer = case.transformer()
    arguments = case.inputs(transformer, case.noise(transformer), 700.0, case.branches[0])
    with transformer.cache_context(case.branches[0], step_index=0, num_inference_steps=10):
        outputs = transformer(**arguments, return_dict=False)
    weights = torch.Generator().manual_seed(12)
    sum((torch.randn(made.shape, generator=weights) * made).sum() for made in outputs).backward()
    return {
        name.rpartition(".")[0]
        for name, weight in transformer.named_parameters()
        if weight.grad is None or not weight.grad.abs().max() > 0
    }


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_every_weight_has_a_say(case):
    """Keys of images, say, that no query looks at would be weights without a gradient."""
    silent = SILENT.get(case.name, r"never")
    assert {name for name in unused_weights(case) if not re.match(silent, name)} == set()
