"""The embedded model's training: its attention is Wan's, its loop resumes, its optimiser orthogonalises."""

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from safetensors.torch import load_file

from tapvideo.tiny import dit, loop, optim, train
from tapvideo.weights import ASSETS


def test_matrix_attention_equals_wans_with_the_padding_written_out(wan):
    """One padded key with a log(count) bias against `count` keys, through the whole model."""
    transformer = wan.random_transformer()
    latents, words = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, 8)
    time = torch.tensor([700.0, 300.0])
    padded = torch.nn.functional.pad(words, (0, 0, 0, 7))
    with torch.no_grad():
        expected = transformer(latents, time, padded, return_dict=False)[0]
        bias = torch.zeros(1, 1, 1, 6)
        bias[..., -1] = torch.tensor(7.0).log()
        for block in transformer.blocks:
            block.attn1.set_processor(dit.MatrixAttention())
            block.attn2.set_processor(dit.MatrixAttention(bias))
        out = transformer(latents, time, padded[:, :6], return_dict=False)[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(p, WanAttnProcessor) for p in transformer.attn_processors.values())


def test_orthogonalize_pushes_singular_values_towards_one():
    values = torch.linalg.svdvals(optim.orthogonalize(torch.randn(2, 24, 60)))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_split_parameters_gives_muon_the_matrices():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv3d(1, 2, 3), torch.nn.LayerNorm(4))
    matrices, rest = optim.split_parameters(module)
    assert [p.shape for p in matrices] == [(4, 3), (2, 1, 3, 3, 3)]
    assert len(matrices) + len(rest) == len(list(module.parameters()))


def training_run(folder, minutes):
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 4)
    optimizers = [optim.Muon([module.weight], 0.02), torch.optim.AdamW([module.bias], 1e-2)]

    def loss_step():
        return (module(torch.randn(8, 4)) - 1).square().mean(), "words"

    return loop.TrainingRun("part", folder, minutes, module, optimizers, loss_step)


def test_training_goes_on_from_its_checkpoint(tmp_path):
    first = training_run(tmp_path, 0.003)
    loop.run(first)
    assert first.step > 0
    second = training_run(tmp_path, 0.006)
    loop.run(second)
    assert second.step > first.step
    spent = training_run(tmp_path, 0.006)
    averaged = loop.run(spent)
    assert spent.step == second.step
    assert torch.equal(averaged["weight"], second.ema["weight"])
    momenta = [o.state[p] for o in (first.optimizers[0], spent.optimizers[0]) for p in o.param_groups[0]["params"]]
    assert all(m["momentum"].abs().sum() > 0 for m in momenta)


def test_sigma_covers_the_range():
    sigma = dit.sample_sigma(2000, torch.Generator().manual_seed(0))
    assert 0 <= sigma.min() < 0.05
    assert 0.97 < sigma.max() <= 1


def test_training_from_a_pipeline_with_no_time_left_gives_it_back(tmp_path):
    """`--init` keeps text encoder and VAE, and starts the DiT from its weights."""
    folder = ASSETS / "wan_tiny"
    arguments = [
        "--out",
        tmp_path,
        "--init",
        folder,
        "--minutes-dit",
        "0",
        "--parts",
        "dit",
        "assemble",
        "--batch",
        "1",
    ]
    train.main([str(a) for a in (*arguments, "--no-compile", "--device", "cpu")])
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model", "transformer/diffusion_pytorch_model"):
        old, new = (load_file(f / f"{part}.safetensors") for f in (folder, tmp_path / "wan_tiny"))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[k], new[k]) for k in old)
