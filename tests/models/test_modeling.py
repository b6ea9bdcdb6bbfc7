"""`GMModel` and `GMConfig`: what the network sees and says, and that it lives in transformers' world."""

import json
import subprocess
import sys
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from gm_discrete import GMConfig, GMModel, MaskedPath, MixturePath, UniformPath, conditional_loss
from gm_discrete.paths.schedules import CosineSchedule
from tests.helpers.networks import LENGTH, MASK, PATHS, K, data, network, noisy, rng

every_path = pytest.mark.parametrize("name", PATHS)
# The network as the recipes use it, with whatever the config can switch on.
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""Logits of size 30 from float32 sums that run in another order, or from times rounded to float32."""
MOVED = 1e-3
"""Far more than rounding: the answer is another one."""

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "convolution": {"conv_kernel_size": 3},
    "relu2": {"hidden_act": "relu2"},
    "tied": {"tie_word_embeddings": True},
    "eager": {"attn_implementation": "eager"},
    "dit": {"backbone": "dit", "condition_size": 16},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def logits_of(model: GMModel, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(input_ids=x, time=t, attention_mask=mask).logits


# ---- what the network sees


@every_variant
@pytest.mark.parametrize("padded", [False, True])
def test_forward__every_position_depends_on_every_other(variant: str, padded: bool) -> None:
    """The last token moves the logits of position 0, and the first those of the last: attention is not causal."""
    model, x = network(**VARIANTS[variant]), data()
    mask = None
    if padded:  # a mask that hides nothing of the first row
        mask = torch.ones_like(x)
        mask[1, -3:] = 0
    t = torch.full((5,), 0.5)
    before = logits_of(model, x, t, mask)
    for changed, seen in ((-1, 0), (0, -1)):
        y = x.clone()
        y[:, changed] = MASK
        moved = (logits_of(model, y, t, mask) - before).abs().nan_to_num()
        assert float(moved[0, seen].max()) > MOVED


@every_variant
def test_forward__eager_and_sdpa_attention_agree(variant: str) -> None:
    x, t = noisy(network(), data())
    mask = torch.ones_like(x)
    mask[1, 5:] = mask[3, :4] = 0
    options = VARIANTS[variant] | {"attn_implementation": "sdpa"}
    model = network(**options)
    assert model.config._attn_implementation == "sdpa"
    for attention_mask in (None, mask):
        expected = logits_of(model, x, t, attention_mask)
        model.set_attn_implementation("eager")
        eager = logits_of(model, x, t, attention_mask)
        model.set_attn_implementation("sdpa")
        real = torch.ones_like(x, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        torch.testing.assert_close(eager[real], expected[real], **ROUNDING)


@every_variant
@every_path
def test_forward__padding_changes_nothing_elsewhere(name: str, variant: str) -> None:
    """Positions appended or put in front, whatever stands there."""
    model, z = network(name, **VARIANTS[variant]), data(name)
    x, t = noisy(model, z)
    expected = logits_of(model, x, t)
    for fill in (0, 9):
        pad, zero = torch.full((5, 4), fill), torch.zeros(5, 4, dtype=torch.long)
        for order in (lambda a, b: (a, b), lambda a, b: (b, a)):
            longer = torch.cat(order(x, pad), 1)
            mask = torch.cat(order(torch.ones_like(x), zero), 1)
            real = logits_of(model, longer, t, mask)[mask.bool()].view_as(expected)
            torch.testing.assert_close(real, expected, **ROUNDING)


@pytest.mark.parametrize("variant", ["plain", "convolution"])
def test_forward__sequences_of_a_batch_are_independent(variant: str) -> None:
    model, x = network(**VARIANTS[variant]), data()
    t = torch.full((5,), 0.5)
    alone = torch.cat([logits_of(model, x[i : i + 1], t[:1]) for i in range(5)])
    torch.testing.assert_close(logits_of(model, x, t), alone, **ROUNDING)


def test_forward__order_matters() -> None:
    """Rotary positions: a permuted sequence has other logits than the permuted ones, at the same token."""
    model, x = network(), torch.tensor([[1, 2, 3, MASK, 4]])
    swapped = torch.tensor([[2, 1, 3, MASK, 4]])
    t = torch.tensor([0.5])
    assert float((logits_of(model, x, t) - logits_of(model, swapped, t))[0, 3, :MASK].abs().max()) > MOVED


# ---- time


def test_time_conditioning__is_off_for_masking_and_on_for_the_rest() -> None:
    for name, path in PATHS.items():
        config = GMConfig(path=path)
        assert config.time_conditioning == (not isinstance(path, MaskedPath))
        model, z = network(name), data(name)
        x, _ = noisy(model, z)
        beliefs = []
        for time in (0.2, 0.7):
            nothing, t = torch.zeros(x.numel(), K), torch.full((x.numel(),), time)
            evidence = model.path.add_evidence(nothing, x.flatten(), t).view(*x.shape, K)
            beliefs.append(logits_of(model, x, torch.full((5,), time)) - evidence)
        moved = (beliefs[0] - beliefs[1]).nan_to_num()
        assert (float(moved.abs().max()) > MOVED) == config.time_conditioning
    assert GMConfig(path=MaskedPath(5), time_conditioning=True).time_conditioning
    assert not GMConfig(path=UniformPath(5), time_conditioning=False).time_conditioning


def test_forward__a_masked_model_needs_no_time() -> None:
    model, x = network(), data()
    with torch.no_grad():
        assert torch.equal(model(input_ids=x).logits, logits_of(model, x, torch.full((5,), 0.7)))


def test_forward__float32_and_float64_times_agree() -> None:
    model, z = network("reversal"), data()
    x, _ = noisy(model, z)
    t = torch.tensor([0.125, 0.25, 0.5, 0.75, 0.875])
    torch.testing.assert_close(logits_of(model, x, t), logits_of(model, x, t.double()), **ROUNDING)


# ---- what the network says


@pytest.mark.parametrize("name", ["masked", "mask is 3"])
def test_forward__revealed_tokens_carry_over_and_the_mask_is_no_data(name: str) -> None:
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    mask = model.path.mask_token_id
    posterior = logits_of(model, x, t).softmax(-1)
    assert bool((posterior[..., mask] == 0).all())
    revealed = x != mask
    assert torch.equal(posterior[revealed], torch.nn.functional.one_hot(x, K).float()[revealed])
    assert float(posterior[~revealed].max()) < 1


def test_forward__the_mask_of_a_uniform_model_is_no_data() -> None:
    model, z = network("reversal"), data()
    x, t = noisy(model, z)
    assert bool((logits_of(model, x, t)[..., MASK] == -torch.inf).all())


def test_forward__evidence_of_the_noisy_symbol_is_added_to_its_logit() -> None:
    """logits = head(hidden) + log(1 + κ/((1 − κ) p0(x))) at x, so that π stays a posterior as κ → 1."""
    model, z = network("mixture"), data()
    x, t = noisy(model, z)
    with torch.no_grad():
        output = model(input_ids=x, time=t)
        belief = model.heads.tokens(output.last_hidden_state)
    expected = belief.double().scatter_add(
        2, x[..., None], torch.log1p(t / (1 - t) * K)[:, None, None].expand(5, LENGTH, 1)
    )
    torch.testing.assert_close(output.logits.double(), expected, **ROUNDING)


@every_path
def test_rates__are_those_of_a_markov_chain(name: str) -> None:
    """Rows of sum 0, but for rounding, nothing negative off the diagonal, and R = h π for mixture rates."""
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    with torch.no_grad():
        rates = model.rates(x, t)
        logits = model(input_ids=x, time=t).logits
    assert rates.shape == (5, LENGTH, K)
    assert float((rates.sum(-1).abs() / rates.abs().sum(-1).clamp(min=1)).max()) < 1e-6
    off = rates.scatter(-1, x[..., None], 0.0)
    assert float(off.min()) >= 0
    if model.path.rates == "mixture":
        expected = logits.softmax(-1) / (1 - t)[:, None, None]
        torch.testing.assert_close(off, expected.scatter(-1, x[..., None], 0.0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["masked", "mixture"])
def test_init__an_untrained_model_is_the_identity_with_a_uniform_belief(name: str) -> None:
    """Every block writes zeros, the time modulates by nothing, and the first bound is the entropy of the uniform
    distribution."""
    config = GMConfig(path=PATHS[name], hidden_size=32, num_hidden_layers=3, num_attention_heads=2, conv_kernel_size=3)
    model, (x, t) = GMModel(config), noisy(network(name), data(name))
    with torch.no_grad():
        output = model(input_ids=x, time=t)
        expected = model.backbone.norm.norm(model.backbone.embed_tokens(x))
    torch.testing.assert_close(output.last_hidden_state, expected)
    belief = output.logits.scatter(2, x[..., None], 0.0)
    assert set(belief.flatten().tolist()) <= {0.0, -torch.inf}


# ---- the transformers' way


@every_path
@every_variant
def test_save_pretrained__is_bit_exact(tmp_path: File, name: str, variant: str) -> None:
    """Parameters, buffers, path, logits and generation defaults, through the Auto classes."""
    model, z = network(name, **VARIANTS[variant]), data(name)
    model.generation_config.num_steps = 7
    model.save_pretrained(tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    again = AutoModel.from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation)
    assert type(again) is GMModel
    assert not again.training
    for first, second in (
        (model.state_dict(), again.state_dict()),
        (dict(model.named_buffers()), dict(again.named_buffers())),
    ):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
    assert again.path == model.path
    assert again.generation_config.num_steps == 7
    x, t = noisy(model, z)
    assert torch.equal(logits_of(again, x, t), logits_of(model, x, t))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is GMConfig
    assert config.build_path().to_dict() == model.path.to_dict()
    before, after = model.config.to_dict(), config.to_dict()
    assert {key for key in before | after if before.get(key) != after.get(key)} <= {"_name_or_path"}


@pytest.mark.slow
def test_save_pretrained__a_fresh_process_loads_it(tmp_path: File) -> None:
    """Logits and a seeded sample, bit for bit, with nothing but `import gm_discrete.models` and AutoModel."""
    model, z = network("prior", conv_kernel_size=3), data()
    x, t = noisy(model, z)
    model.save_pretrained(tmp_path)
    torch.save((x, t), tmp_path / "input.pt")
    script = (
        "import sys, torch, gm_discrete.models; from transformers import AutoModel; torch.set_num_threads(1)\n"
        "folder = sys.argv[1]; model = AutoModel.from_pretrained(folder); x, t = torch.load(folder + '/input.pt')\n"
        "with torch.no_grad(): logits = model(input_ids=x, time=t).logits\n"
        "torch.save((logits, model.generate(batch_size=2, seed=3, num_steps=5)), folder + '/output.pt')\n"
    )
    root = str(File(sys.modules["gm_discrete"].__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, sample = torch.load(tmp_path / "output.pt")
    assert torch.equal(logits, logits_of(model, x, t))
    assert torch.equal(sample, model.generate(batch_size=2, seed=3, num_steps=5))


def test_config__is_readable_json(tmp_path: File) -> None:
    path = MixturePath(3, [0.5, 0.25, 0.25], schedule=CosineSchedule(), rates="mixture")
    GMConfig(path=path, hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["path"] == {
        "type": "mixture", "vocab_size": 3, "prior": [0.5, 0.25, 0.25], "schedule": {"type": "cosine"}, "rates": "mixture",
        "coupled": False,
    }  # fmt: skip
    assert config["model_type"] == "gm_discrete"
    assert AutoConfig.from_pretrained(tmp_path).build_path() == path


def test_from_pretrained__reports_no_missing_keys(tmp_path: File) -> None:
    """No missing, unexpected or mismatched keys, the tied head included."""
    for options in ({}, {"tie_word_embeddings": True}):
        model = network(**options)
        model.save_pretrained(tmp_path)
        _, report = GMModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report


def test_config__a_tied_head_shares_the_weights_of_the_embedding(tmp_path: File) -> None:
    model = network(tie_word_embeddings=True)
    assert model.heads.tokens.weight is model.backbone.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    assert again.heads.tokens.weight is again.backbone.embed_tokens.weight
    untied = network()
    assert untied.heads.tokens.weight is not untied.backbone.embed_tokens.weight
    assert untied.num_parameters() - model.num_parameters() == K * 32


def test_resize_token_embeddings__is_refused() -> None:
    model = network()
    assert model.get_input_embeddings() is model.backbone.embed_tokens
    assert model.get_output_embeddings() is model.heads.tokens
    with pytest.raises(ValueError, match=r"vocabulary.*GMConfig"):
        model.resize_token_embeddings(K + 1)


@every_variant
@pytest.mark.parametrize("name", ["masked", "reversal"])
def test_gradient_checkpointing__has_the_same_gradients(name: str, variant: str) -> None:
    model, z = network(name, **VARIANTS[variant]).train(), data()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        conditional_loss(model, z, rng=rng(1)).backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@every_path
@every_variant
def test_forward__bf16_autocast_trains(name: str, variant: str) -> None:
    """bf16 carries 8 bits: hidden states err by 2⁻⁸ of their size, and the mean loss by less than 3 %."""
    model, z = network(name, **VARIANTS[variant]), data(name, rows=64)
    exact = conditional_loss(model, z, rng=rng(2)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = conditional_loss(model, z, rng=rng(2))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.03)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


@every_path
def test_forward__bf16_weights_generate_and_score(name: str, tmp_path: File) -> None:
    model = network(name)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    model = GMModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    sample = model.generate(batch_size=3, num_steps=6, seed=1)
    assert sample.shape == (3, LENGTH)
    z = data(name)
    assert bool(conditional_loss(model, z, rng=rng(1)).isfinite())
    x, t = noisy(model, z)
    assert logits_of(model, x, t).dtype == torch.float32


@every_path
def test_conditional_loss__trains_every_parameter(name: str) -> None:
    """DDP waits for the gradient of every parameter."""
    model = network(name, conv_kernel_size=3).train()
    conditional_loss(model, data(name), rng=rng(1)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_dropout__is_of_training_only() -> None:
    model, x = network(hidden_dropout=0.5, attention_dropout=0.5), data()
    t = torch.full((5,), 0.5)
    assert torch.equal(logits_of(model, x, t), logits_of(model, x, t))
    model.train()
    assert not torch.equal(logits_of(model, x, t), logits_of(model, x, t))


def test_forward__outputs_come_as_objects_or_tuples() -> None:
    model, x = network(), data()
    t = torch.full((5,), 0.5)
    output = model(input_ids=x, time=t)
    assert output.loss is None
    assert output.logits.shape == (5, LENGTH, K)
    hidden, logits = model(input_ids=x, time=t, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert hidden.shape == (5, LENGTH, 32)
    model.config.return_dict = False
    assert torch.equal(model(input_ids=x, time=t)[0], output.last_hidden_state)
    assert torch.equal(model(input_ids=x, time=t, return_dict=True).logits, output.logits)
    model.config.return_dict = True
    scored = model(input_ids=x, time=t, labels=x)
    assert scored.logits is None
    assert scored.loss.dim() == 0


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sise": 4}, "GMConfig takes no argument hidden_sise"),
        (
            {"path": {"type": "blurred"}},
            "path='blurred' .*euclidean_mixture, gaussian, geodesic_so3.*masked, metric",
        ),
        ({"path": {"type": "masked", "vocab_size": 5, "depth": 1}}, "MaskedPath takes no argument depth"),
        ({"path": MaskedPath(5), "vocab_size": 6}, "vocab_size=6 differs from the path's vocab_size=5"),
        ({"path": MaskedPath(5), "mask_token_id": 2}, "mask_token_id=2 differs from the path's 4"),
        ({"path": UniformPath(5), "mask_token_id": 5}, "mask_token_id=5 must be an id below vocab_size=5"),
        ({"path": UniformPath(5), "pad_token_id": -1}, "pad_token_id=-1 must be an integer ≥ 0"),
        ({"path": UniformPath(5), "eos_token_id": 9}, "eos_token_id=9"),
        (
            {"hidden_size": 30, "num_attention_heads": 4},
            "hidden_size=30.*num_attention_heads=4",
        ),
        ({"hidden_size": 12, "num_attention_heads": 4}, "hidden_size=12"),
        ({"divergence": "l2"}, "divergence='l2' must be 'generalized_kl' or 'cross_entropy'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4 must be odd"),
    ],
)
def test_config__bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMConfig(**options)


GOOD, HALF = torch.zeros(2, 3, dtype=torch.long), torch.full((2,), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": GOOD + K}, r"input_ids holds ids from 11 to 11; vocab_size=11"),
        ({"input_ids": GOOD - 1}, "input_ids holds ids from -1 to -1"),
        ({"input_ids": GOOD.float()}, r"input_ids.*\[B, L\].*torch.float32"),
        ({"input_ids": GOOD[0]}, r"input_ids.*\[B, L\].*torch.int64 of shape \(3,\)"),
        ({"time": HALF[:1]}, r"t must have shape \[B\] = \[2\], got \(1,\)"),
        ({"time": HALF + 1}, r"times must lie in \[0, 1\].*1\.5"),
        ({"time": -HALF}, r"times must lie in \[0, 1\].*-0\.5"),
        ({"time": HALF * torch.nan}, r"times must lie in \[0, 1\].*nan"),
        ({"time": None}, "time is missing: pass time=t.*Pipelines"),
        ({"labels": GOOD[:, :2]}, r"labels has shape \(2, 2\).*\(2, 3\)"),
        ({"labels": GOOD + K}, "holds ids from 11 to 11; vocab_size=11"),
        ({"labels": GOOD, "divergence": "l2"}, "kind='l2' is no divergence"),
        ({"attention_mask": torch.ones(2, 2)}, r"attention_mask has shape \(2, 2\).*\(2, 3\)"),
    ],
)
def test_forward__bad_inputs_are_named(arguments: dict, message: str) -> None:
    model = network("mixture")
    with pytest.raises(ValueError, match=message):
        model(**({"input_ids": GOOD, "time": HALF} | arguments))


def test_forward__labels_need_a_time() -> None:
    with pytest.raises(ValueError, match=r"\btime\b"):
        network("masked")(input_ids=GOOD, labels=GOOD)
