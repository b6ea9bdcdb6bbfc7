"""Published checkpoints, converted: their models state what the originals do, by an independent forward pass."""

import json
import logging
import math
from pathlib import Path as File
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gm_discrete import (
    GMConfig,
    GMModel,
    MaskedPath,
    MixturePath,
    UniformPath,
    bregman,
    conditional_loss,
    likelihood_bound,
)
from gm_discrete.convert import convert, main
from gm_discrete.nn.dit import DiT
from tests.helpers.published import (
    CONFIGS,
    EPS,
    LENGTH,
    WIDTH,
    K,
    duo_bound,
    duo_step,
    mdlm_log_belief,
    network,
    sedd_log_score,
    state_dict,
    total_noise,
)  # fmt: skip

MASK = K - 1
TAU = (0.0, 0.1, 0.5, 0.9, 0.999, 1.0)
CLOSE = 1e-5
"""Of float32 against float64, for logits of size 1 to 10."""
MOVED = 1e-3
"""More than a hundred times what rounding does: a difference that is one."""

every_family = pytest.mark.parametrize("name", CONFIGS)


def folder(at: File, state: dict[str, Tensor], config: dict[str, Any] | None, prefix: str = "backbone.") -> File:
    at.mkdir(exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, at / "model.safetensors")
    if config is not None:
        (at / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return at


def saved(*arguments: Any, **options: Any) -> Any:
    """The model of a folder that `convert` writes."""
    return GMModel.from_pretrained(convert(*arguments, **options)).eval()


def converted(tmp_path: File, name: str, state: dict[str, Tensor] | None = None, **options: Any) -> GMModel:
    """The model as it is read back from the folder that was written."""
    source = folder(tmp_path / "source", state or state_dict(), CONFIGS[name])
    return saved(source, tmp_path / "model", **options)


def states(name: str, rows: int = len(TAU)) -> tuple[Tensor, Tensor]:
    """Noisy x and clean z; every symbol and, but for Duo, the mask occur."""
    rng = torch.Generator().manual_seed(5)
    symbols = K if name == "duo" else K - 1
    x, z = (torch.randint(symbols, (rows, LENGTH), generator=rng) for _ in range(2))
    if name != "duo":
        x[torch.rand(x.shape, generator=rng) < 0.6] = MASK
    return x, z


def kappa_of(tau: Tensor) -> Tensor:
    return 1 - (1 - EPS) * tau


def logits_of(model: GMModel, x: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=x, time=t).logits.double()


# ---- what is stated


@pytest.mark.parametrize("name", ["mdlm", "mdlm, conditioned on time"])
def test_convert__mdlm_predicts_the_same(tmp_path: File, name: str) -> None:
    model, state, (x, _), tau = converted(tmp_path, name), state_dict(), states(name), torch.tensor(TAU).double()
    sigma = total_noise(tau) if model.config.time_conditioning else torch.zeros(len(TAU))
    expected = mdlm_log_belief(network(state, x, sigma), x, MASK).exp()
    logits = logits_of(model, x, kappa_of(tau))
    assert float((logits.softmax(-1) - expected).abs().max()) < CLOSE
    masked = x == MASK
    log_belief = logits[..., :MASK].log_softmax(-1)[masked]
    assert float((log_belief - expected.log()[..., :MASK][masked]).abs().max()) < CLOSE


@pytest.mark.parametrize("scale_by_sigma", [True, False])
def test_convert__sedd_predicts_the_posterior_of_its_score(tmp_path: File, scale_by_sigma: bool) -> None:
    model, state, (x, _), tau = (
        converted(tmp_path, "sedd"),
        state_dict(),
        states("sedd"),
        torch.tensor(TAU[1:]).double(),
    )
    x, sigma, masked = x[1:], total_noise(tau), x[1:] == MASK
    score = sedd_log_score(network(state, x, sigma), x, sigma, scale_by_sigma)
    logits = logits_of(model, x, kappa_of(tau))[..., :MASK].log_softmax(-1)
    assert float((logits - score[..., :MASK].log_softmax(-1))[masked].abs().max()) < CLOSE


def test_convert__sedd_has_the_rates_of_its_score_up_to_their_sum(tmp_path: File) -> None:
    """SEDD's rate, σ̄'(τ) s(y), is that of the converted model times Z = Σ_y s(y)(e^σ̄ − 1)."""
    model, state, (x, _), tau = (
        converted(tmp_path, "sedd"),
        state_dict(),
        states("sedd", 4),
        torch.tensor(TAU[1:5]).double(),
    )
    sigma = total_noise(tau)
    score = sedd_log_score(network(state, x, sigma), x, sigma, True).exp()[..., :MASK]
    slope = (1 - EPS) / (1 - (1 - EPS) * tau)  # σ̄'(τ)
    expected = slope[:, None, None] * score / (1 - EPS)  # a unit of t is 1/(1 − ε) of one of τ
    excess = (score * torch.expm1(sigma)[:, None, None]).sum(-1, keepdim=True)
    with torch.no_grad():
        rates = model.rates(x, kappa_of(tau)).double()[..., :MASK]
    torch.testing.assert_close((rates * excess)[x == MASK], expected[x == MASK], rtol=1e-5, atol=1e-7)
    assert float((excess - 1).abs().min()) > MOVED  # Z is not 1


def test_convert__duo_predicts_the_same_given_the_other_tokens(tmp_path: File) -> None:
    """The head says Duo's x̂; the posterior is x̂(z) p_t(x|z), normalised."""
    model, state, (x, _), tau = converted(tmp_path, "duo"), state_dict(), states("duo"), torch.tensor(TAU).double()
    kappa = kappa_of(tau)
    belief = network(state, x, total_noise(tau)).log_softmax(-1)
    with torch.no_grad():
        said = model.heads.tokens(model(input_ids=x, time=kappa).last_hidden_state).double().log_softmax(-1)
    assert float((said - belief).abs().max()) < CLOSE
    likelihood = (1 - kappa)[:, None, None] / K + kappa[:, None, None] * torch.nn.functional.one_hot(x, K)
    posterior = belief.exp() * likelihood
    posterior = posterior / posterior.sum(-1, keepdim=True)
    assert float((logits_of(model, x, kappa).softmax(-1) - posterior).abs().max()) < CLOSE


def test_convert__duo_has_the_same_reverse_step(tmp_path: File) -> None:
    model, state, (x, _) = converted(tmp_path, "duo"), state_dict(), states("duo", 4)
    for tau, tau_next in ((1.0, 0.7), (0.6, 0.5), (0.1, 0.0), (0.5, 0.05)):
        now, then = kappa_of(torch.tensor([tau, tau_next]).double()).tolist()
        u = network(state, x, total_noise([tau] * 4))
        jump = model.generator(x, torch.full((4,), now).double(), torch.full((4,), then).double())
        with torch.no_grad():
            landing, event = jump.kernel.probs().double(), jump.probability[..., None]
        law = event * landing + (1 - event) * torch.nn.functional.one_hot(x, K)
        assert float((law - duo_step(u, x, now, then)).abs().max()) < CLOSE


def test_convert__duo_takes_the_even_steps_of_its_sampler(tmp_path: File) -> None:
    model = converted(tmp_path, "duo")
    assert (model.generation_config.grid, model.path.spacing) == ("linear", "quadratic")
    own, even, other = (
        model.generate(batch_size=8, length=LENGTH, num_steps=4, seed=0, **options)
        for options in ({}, {"grid": "linear"}, {"grid": "quadratic"})
    )
    assert torch.equal(own, even)
    assert not torch.equal(own, other)


def test_convert__duo_has_the_same_likelihood_bound(tmp_path: File) -> None:
    """Integrand by integrand, also at κ = 0.999, where 1 − π(x), of float32, keeps four or five digits."""
    model, state, (x, z) = converted(tmp_path, "duo"), state_dict(), states("duo", 4)
    for tau in (0.99, 0.5, 0.1, 0.001):
        kappa = float(kappa_of(torch.tensor(tau).double()))
        t = torch.full((4,), kappa).double()
        with torch.no_grad():
            ours = bregman.divergence(model.path.conditional(z, x, t), model.generator(x, t), x)
        expected = duo_bound(network(state, x, total_noise([tau] * 4)), x, z, kappa)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)


def test_convert__uniform_sedd_has_scores_without_a_posterior() -> None:
    """ν(y) = (s(y)/Σs − (1 − κ)/K)/κ of a free score is negative somewhere: the reason for which it is refused."""
    x, _ = states("duo")
    tau = torch.tensor(TAU).double()
    score = sedd_log_score(network(state_dict(), x, total_noise(tau)), x, total_noise(tau), False).exp()
    kappa = kappa_of(tau)[:, None, None]
    belief = (score / score.sum(-1, keepdim=True) - (1 - kappa) / K) / kappa
    torch.testing.assert_close(belief.sum(-1), torch.ones_like(belief[..., 0]))
    assert float(belief[1:].amin()) < -MOVED


@every_family
def test_convert__noise_input_is_clamped_to_the_original_range(tmp_path: File, name: str) -> None:
    """κ runs from 0; the log-linear noise from κ = ε. Between the two the network is conditioned on σ̄ = −log ε."""
    model, (x, _) = converted(tmp_path, name), states(name)
    seen = [
        model.network.hidden({"": x}, torch.full((len(x),), kappa).double()) for kappa in (0.0, EPS / 2, EPS, 2 * EPS)
    ]
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[1], seen[2], rtol=0, atol=1e-6)
    assert torch.equal(seen[2], seen[3]) == (not model.config.time_conditioning)


def test_convert__puts_every_tensor_in_its_place(tmp_path: File) -> None:
    """Each moves the logits, and only as it moves those of the original: none is forgotten, none swapped."""
    state, (x, _), tau = state_dict(), states("sedd"), torch.tensor([0.5] * len(TAU)).double()
    before = network(state, x, total_noise(tau))[..., :MASK]
    rng = torch.Generator().manual_seed(9)
    for i, name in enumerate(set(state) - {"rotary_emb.inv_freq"}):
        changed = {**state, name: state[name] + 0.2 * torch.randn(state[name].shape, generator=rng)}
        expected = network(changed, x, total_noise(tau))[..., :MASK]
        assert float((expected - before)[x == MASK].abs().max()) > MOVED, name
        (tmp_path / str(i)).mkdir()
        logits = logits_of(converted(tmp_path / str(i), "sedd", changed), x, kappa_of(tau))[..., :MASK]
        assert float((logits - expected).log_softmax(-1)[x == MASK].std(-1).max()) < CLOSE, name


@pytest.mark.parametrize("broken", ["query and key", "shift and scale", "halves", "rotary", "sine and cosine"])
def test_convert__wrong_conversions_would_be_found(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    state, (x, _), tau = state_dict(), states("sedd"), torch.tensor([0.5] * len(TAU)).double()
    wrong = dict(state)
    if broken == "query and key":
        rows = state["blocks.1.attn_qkv.weight"].split(WIDTH)
        wrong["blocks.1.attn_qkv.weight"] = torch.cat([rows[2], rows[1], rows[0]])
    elif broken in ("shift and scale", "halves"):
        parts = state["blocks.0.adaLN_modulation.weight"].split(WIDTH)
        order = (1, 0, 2, 3, 4, 5) if broken == "shift and scale" else (3, 4, 5, 0, 1, 2)
        wrong["blocks.0.adaLN_modulation.weight"] = torch.cat([parts[i] for i in order])
    elif broken == "sine and cosine":
        wrong["sigma_map.mlp.0.weight"] = state["sigma_map.mlp.0.weight"].roll(128, 1)
    else:
        monkeypatch.setattr("gm_discrete.nn.backbone.rotate", lambda states, rotary: states)
    expected = network(state, x, total_noise(tau))[..., :MASK].log_softmax(-1)
    logits = logits_of(converted(tmp_path, "sedd", wrong), x, kappa_of(tau))[..., :MASK].log_softmax(-1)
    assert float((logits - expected)[x == MASK].abs().max()) > MOVED


# ---- what the converted model is good for


@every_family
def test_convert__model_generates_is_scored_and_trained(tmp_path: File, name: str) -> None:
    model, (_, z) = converted(tmp_path, name), states(name)
    assert isinstance(model.backbone, DiT)
    sample = model.generate(batch_size=3, num_steps=8, seed=1)
    assert sample.shape == (3, LENGTH)
    assert name == "duo" or int(sample.max()) < MASK
    bound = likelihood_bound(model, z, num_samples=4, rng=torch.Generator().manual_seed(1))
    assert bool(bound.nats.isfinite().all())
    assert bound.kind == ("reversal" if name == "duo" else "masked")
    conditional_loss(model.train(), z, rng=torch.Generator().manual_seed(2)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_convert__model_has_the_modules_that_fsdp_does_not_split(tmp_path: File) -> None:
    """It wraps the blocks by the names of their classes, and refuses one that it does not find."""
    for model, block in ((converted(tmp_path, "mdlm"), "DiTBlock"), (GMModel(GMConfig(hidden_size=32)), "Block")):
        assert set(model._no_split_modules or ()) == {block}
        assert block in {type(module).__name__ for module in model.modules()}


@every_family
def test_convert__returns_the_folder_that_it_writes(tmp_path: File, name: str) -> None:
    source = folder(tmp_path / "source", state_dict(), CONFIGS[name])
    assert convert(source, tmp_path / "deep" / "model") == tmp_path / "deep" / "model"
    _, report = GMModel.from_pretrained(tmp_path / "deep" / "model", output_loading_info=True)
    assert not any(report.values()), report
    written = json.loads((tmp_path / "deep" / "model" / "config.json").read_text(encoding="utf-8"))
    assert written["backbone"] == "dit"
    assert written["path"]["type"] == ("uniform" if name == "duo" else "masked")
    assert written["noise_range"] == pytest.approx([0, -math.log(EPS)])
    assert written["max_position_embeddings"] == LENGTH
    assert written["hidden_dropout"] == 0.1
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == ["model"]  # nothing half-done is left


def test_convert__geometric_noise_sets_the_range_of_the_noise_input(tmp_path: File) -> None:
    noise = {"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20}
    source = folder(tmp_path / "source", state_dict(), {**CONFIGS["sedd"], "noise": noise})
    assert saved(source, tmp_path / "model").config.noise_range == [1e-4, 20.0]


# ---- layouts


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "backbone._orig_mod.", "module.backbone."])
def test_convert__reads_prefixes_and_containers(tmp_path: File, prefix: str) -> None:
    state, (x, _), t = state_dict(), states("sedd"), torch.tensor(TAU).double()
    expected = logits_of(converted(tmp_path, "sedd"), x, t)
    named = {prefix + name: tensor for name, tensor in state.items()}
    for i, content in enumerate((named, {"state_dict": named, "epoch": 3}, {"model": named, "step": 7})):
        torch.save(content, tmp_path / f"{i}.ckpt")
        model = saved(tmp_path / f"{i}.ckpt", tmp_path / f"{i}", "sedd-absorb")
        assert torch.equal(logits_of(model, x, t), expected)
    (tmp_path / "bin").mkdir()
    torch.save(named, tmp_path / "bin" / "pytorch_model.bin")
    assert torch.equal(logits_of(saved(tmp_path / "bin", tmp_path / "of bin", "sedd-absorb"), x, t), expected)


def test_convert__uses_averaged_weights_if_their_order_is_certain(
    tmp_path: File, caplog: pytest.LogCaptureFixture
) -> None:
    last, average, (x, _), t = state_dict(0), state_dict(1), states("mdlm"), torch.tensor(TAU).double()
    shadow = [tensor for name, tensor in average.items() if "inv_freq" not in name]
    swapped = [*shadow]
    swapped[1], swapped[0] = swapped[0], swapped[1]
    backwards = dict(reversed(last.items()))
    cases: dict[str, tuple[dict, list[Tensor], bool, dict[str, Tensor], str]] = {
        "sure": (last, shadow, True, average, "the average (EMA) of training"),
        "not wanted": (last, shadow, False, last, ""),
        "too few": (last, shadow[1:], True, last, "cannot be matched"),
        "other shapes": (last, swapped, True, last, "cannot be matched"),
        "other order": (backwards, shadow, True, last, "cannot be matched"),
        "none": (last, [], True, last, "has no average"),
    }
    for name, (state, given, ema, chosen, message) in cases.items():
        caplog.clear()
        named = {f"backbone.{key}": tensor for key, tensor in state.items()}
        torch.save({"state_dict": named, "ema": {"decay": 0.99, "shadow_params": given}}, tmp_path / "last.ckpt")
        with caplog.at_level(logging.INFO):
            model = saved(tmp_path / "last.ckpt", tmp_path / name, "mdlm", ema=ema)
        expected = mdlm_log_belief(network(chosen, x, torch.zeros(len(x))), x, MASK).exp()
        assert float((logits_of(model, x, t).softmax(-1) - expected).abs().max()) < CLOSE, name
        assert message in caplog.text, name


def test_convert__leaves_out_what_is_not_the_network(tmp_path: File, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in state_dict().items()}
    state |= {f"teacher.{name}": tensor for name, tensor in state_dict(3).items()} | {"noise.empty": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO):
        convert(tmp_path / "last.ckpt", tmp_path / "model", "duo")
    assert "left out" in caplog.text
    assert "noise.empty, teacher.blocks" in caplog.text


def test_convert__mask_is_the_tokenizers_or_the_last_symbol(tmp_path: File) -> None:
    source = folder(tmp_path / "source", state_dict(), CONFIGS["mdlm"])
    assert saved(source, tmp_path / "last").path == MaskedPath(K)
    assert saved(source, tmp_path / "given", mask_token_id=1).path == MaskedPath(K, 1)
    (source / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}), encoding="utf-8")
    (source / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 3, "content": "[MASK]"}]}), encoding="utf-8"
    )
    assert saved(source, tmp_path / "tokenizer").path == MaskedPath(K, 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (source / name).read_bytes()
    (source / "config.json").write_text(json.dumps(CONFIGS["sedd"]), encoding="utf-8")
    assert saved(source, tmp_path / "sedd").path == MaskedPath(K)  # which always adds a symbol of its own


@pytest.mark.parametrize(
    ("tokenizer", "mask"),
    [
        ({"model": {"vocab": {"[MASK]": 3}}}, 3),
        ({"added_tokens": [7, {"content": ["[MASK]"], "id": 1}, {"content": "[MASK]", "id": 4}]}, 4),
        ({"added_tokens": [{"content": "[MASK]", "id": "4"}]}, None),
        ({"added_tokens": 3, "model": []}, None),
        (None, None),
    ],
)
def test_convert__mask_of_tokenizer_files_has_an_id_or_is_asked_for(tmp_path: File, tokenizer: Any, mask: Any) -> None:
    source = folder(tmp_path / "source", state_dict(), CONFIGS["mdlm"])
    (source / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[MASK]"}}), encoding="utf-8")
    if tokenizer is not None:
        (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if mask is None:
        with pytest.raises(ValueError, match=r"mask_token_id is missing.*'\[MASK\]'"):
            convert(source, tmp_path / "model")
        assert saved(source, tmp_path / "model", mask_token_id=1).path == MaskedPath(K, 1)
    else:
        assert saved(source, tmp_path / "model").path == MaskedPath(K, mask)


# ---- refusals


def without(*names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state_dict().items() if name not in names}


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (without("blocks.1.norm2.weight"), {}, "missing blocks.1.norm2.weight; unexpected nothing"),
        (state_dict() | {"y.bias": torch.zeros(2)}, {}, "missing nothing; unexpected y.bias"),
        (
            state_dict() | {"blocks.0.attn_qkv.weight": torch.zeros(WIDTH, 3 * WIDTH)},
            {},
            r"attn_qkv.weight.*\(16, 48\).*\(48, 16\)",
        ),
        (without("vocab_embed.embedding"), {}, "…vocab_embed.embedding"),
        (without("rotary_emb.inv_freq"), {}, "num_attention_heads is missing"),
        (state_dict(), {"num_attention_heads": 4}, "not clear: 4 by num_attention_heads, 2 by rotary_emb.inv_freq"),
        (state_dict() | {"rotary_emb.inv_freq": torch.ones(4)}, {}, r"rotary_emb.inv_freq of source is not 10000\^"),
        (
            state_dict(),
            {"family": None},
            r"family is missing.*no config.*mdlm, sedd-absorb, sedd-uniform, duo",
        ),
        (state_dict(), {"family": "gpt"}, "family='gpt'.*mdlm, sedd-absorb, sedd-uniform, duo"),
        (state_dict(), {"family": "sedd-uniform"}, r"no exact counterpart: .* only if s\(y\)/Σs ≥ \(1 − κ\)/K"),
        (state_dict(), {"family": "duo", "mask_token_id": 2}, "mask_token_id=2 is MDLM's"),
        (state_dict(), {"mask_token_id": K}, f"mask_token_id={K} must be an integer from 0 to {K - 1}"),
        (state_dict(), {"eps": 0.0}, "eps=0.0 must lie between 0 and 1"),
    ],
)
def test_convert__names_what_is_wrong_with_a_checkpoint(
    tmp_path: File, state: dict[str, Tensor], options: dict[str, Any], message: str
) -> None:
    source = folder(tmp_path / "source", state, None, prefix="")
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "model", **{"family": "mdlm", **options})
    assert not (tmp_path / "model").exists()


def test_convert__names_bad_sources_and_destinations(tmp_path: File) -> None:
    with pytest.raises(FileNotFoundError, match="is neither a file nor a folder"):
        convert(tmp_path / "nowhere", tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors, .*pytorch_model.bin"):
        convert(tmp_path / "empty", tmp_path / "model")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no safetensors file"):
        convert(tmp_path / "bad.safetensors", tmp_path / "model", "mdlm")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(tmp_path / "empty", tmp_path)
    for i, (config, message) in enumerate(
        (
            ({**CONFIGS["duo"], "causal": True}, "causal=true"),
            ({"model_type": "gpt2"}, "its config has model_type='gpt2'"),
            ({**CONFIGS["mdlm"], "model_type": "bd3lm"}, "model_type='bd3lm': BD3-LM's network"),
            ({**CONFIGS["sedd"], "graph": {"type": "uniform"}}, "family='sedd-uniform' has no exact counterpart"),
        )
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder(tmp_path / f"{i}", state_dict(), config), tmp_path / "model")
    torch.save(
        {"backbone.vocab_embed.embedding": torch.zeros(2, 2), "decoder.bias": torch.zeros(2)}, tmp_path / "two.bin"
    )
    with pytest.raises(ValueError, match=r"decoder.bias"):
        convert(tmp_path / "two.bin", tmp_path / "model", "mdlm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "unet"}, "backbone='unet' must be 'gm' or 'dit'"),
        ({"backbone": "dit", "hidden_act": "swiglu"}, "hidden_act='swiglu' must be 'gelu_pytorch_tanh'"),
        ({"backbone": "dit", "noise_range": [1, 1]}, r"noise_range=\[1.0, 1.0\] must be 0 ≤ least < greatest"),
        ({"backbone": "dit", "condition_size": 0}, "condition_size=0 must be an integer from 1"),
        ({"backbone": "dit", "num_classes": 2}, "backbone='dit' has no num_classes; got 2"),
        ({"backbone": "dit", "tie_word_embeddings": True}, "backbone='dit' has no tie_word_embeddings"),
        ({"backbone": "dit", "path": {"type": "gaussian"}}, "backbone='dit'"),
    ],
)
def test_dit_config__names_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMConfig(**{"path": MaskedPath(K), **options})


def test_dit_config__reads_configs_without_a_backbone(tmp_path: File) -> None:
    GMConfig(path=MixturePath(3, [0.5, 0.25, 0.25]), hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for name in ("backbone", "condition_size", "noise_range"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert GMConfig.from_pretrained(tmp_path).backbone == "gm"


# ---- the command line


def test_convert_command__writes_a_model(tmp_path: File) -> None:
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state_dict().items()}}, tmp_path / "duo.ckpt")
    main(
        [
            str(tmp_path / "duo.ckpt"),
            str(tmp_path / "model"),
            "--family",
            "duo",
            "--length",
            "9",
            "--num-attention-heads",
            "2",
        ]
    )
    model = GMModel.from_pretrained(tmp_path / "model").eval()
    assert model.path == UniformPath(K)
    assert model.generate(batch_size=2, num_steps=3, seed=0).shape == (2, 9)
    (x, _), tau = states("duo"), torch.tensor(TAU).double()
    with torch.no_grad():
        said = model.heads.tokens(model(input_ids=x, time=kappa_of(tau)).last_hidden_state).double().log_softmax(-1)
    assert float((said - network(state_dict(), x, total_noise(tau)).log_softmax(-1)).abs().max()) < CLOSE


def test_convert_command__prints_errors_in_one_line(tmp_path: File, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "source", state_dict(), None)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "source"), str(tmp_path / "model")])
    assert stop.value.code == 2
    assert "family is missing" in capsys.readouterr().err.splitlines()[-1]
