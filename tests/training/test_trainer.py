"""`GMTrainer`: evaluation by the bound, a stop at losses that are not finite, no pickle, and clear errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, TrainingArguments

from gm_discrete import GMModel, MixturePath, UniformPath, UniformTimeSampler, likelihood_bound
from gm_discrete.data import TokenCollator, character_tokenizer, pack
from gm_discrete.training import GMTrainer, MuonAdamW, is_complete
from tests.helpers.small_run import (
    LENGTH,
    TOKENIZER,
    Recorder,
    checkpoint,
    losses,
    poison,
    record_inputs,
    rows,
    small_model,
    small_trainer,
    weights,
)

# Sources of coupled paths


@pytest.mark.slow
def test_trainer__a_coupled_path_learns_from_sources(tmp_path: Path) -> None:
    """a → c, b → d: every symbol shows whether it has jumped, and −log p(z|x_0) is 0 once a model has learnt the table."""
    ids = TOKENIZER("abcd", add_special_tokens=False)["input_ids"]
    rng = torch.Generator().manual_seed(0)
    index, table = torch.randint(2, (64, LENGTH), generator=rng), torch.tensor(ids)
    source, data = table[index], table[index + 2]
    examples = Dataset.from_dict({"input_ids": data.tolist(), "source_ids": source.tolist()})
    path = MixturePath(len(TOKENIZER), coupled=True)
    model = small_model(path, hidden_size=32)
    options: dict = {"max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    trainer = small_trainer(tmp_path, examples, model, eval_dataset=examples, **options)
    before = trainer.evaluate()["eval_bits_per_token"]
    trainer.train()
    after = trainer.evaluate()["eval_bits_per_token"]
    assert after < 0.5 < 2 < before
    out = model.generate(x_0=source, num_steps=32, seed=0)
    assert float((out == data).double().mean()) > 0.9
    with pytest.raises(ValueError, match="source_ids"):
        TokenCollator(0)([{"input_ids": [1], "source_ids": [2]}, {"input_ids": [1]}])


# Evaluation


def test_trainer__evaluates_the_bound(tmp_path: Path) -> None:
    """With a head of zeros every symbol but the mask is as likely as any other: log2(K − 1) bits, whatever is drawn."""
    model = small_model()
    nn.init.zeros_(model.heads.tokens.weight)
    held_out = rows(7, lengths=(8, 3, 5))
    metrics = small_trainer(tmp_path, model=model, eval_dataset=held_out, per_device_eval_batch_size=2).evaluate()
    assert metrics["eval_bits_per_token"] == pytest.approx(math.log2(7), rel=1e-6)
    assert metrics["eval_bits_per_token_stderr"] == pytest.approx(0, abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(7, rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("path", [None, UniformPath(len(TOKENIZER), special_token_ids=TOKENIZER.all_special_ids)])
def test_trainer__evaluation_agrees_with_likelihood_bound(tmp_path: Path, path: Any) -> None:
    """The same sequences under other noise: their mean differs by its standard error over draws, 8 of them at most.

    With 16 repetitions |t| > 8 has probability 1e-6 (Student's t).
    """
    model, held_out = small_model(path), rows(6, lengths=(8, 3, 5))
    trainer = small_trainer(tmp_path, model=model, eval_dataset=held_out, num_eval_samples=4)
    batch = TokenCollator(TOKENIZER.pad_token_id)(list(held_out))
    rng = torch.Generator().manual_seed(1)
    bits = torch.tensor(
        [likelihood_bound(model, batch["input_ids"], batch["attention_mask"], 4, rng).bits_per_token for _ in range(16)]
    )
    assert abs(trainer.evaluate()["eval_bits_per_token"] - bits.mean()) < 8 * bits.std() * math.sqrt(1 + 1 / 16)


def test_trainer__evaluation_is_deterministic_and_reports_its_error(tmp_path: Path) -> None:
    trainers = [small_trainer(tmp_path, eval_dataset=rows(9, seed=1), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (trainer.evaluate() for trainer in trainers)
    assert first == again == trainers[0].evaluate()
    assert first["eval_loss"] != other["eval_loss"]
    assert first["eval_bits_per_token_stderr"] == trainers[0].bound().stderr > 0
    assert first["eval_bits_per_token"] == pytest.approx(first["eval_loss"] / math.log(2))
    assert trainers[0].bound().num_tokens.tolist() == [LENGTH] * 9


@pytest.mark.slow
def test_trainer__evaluation_does_not_change_training(tmp_path: Path) -> None:
    runs = []
    for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rows(4, seed=1)}):
        runs.append(small_trainer(tmp_path, num_train_epochs=1, **arguments))
        runs[-1].train()
        assert runs[-1].model.training
    assert losses(runs[0]) == losses(runs[1])
    assert sum("eval_bits_per_token" in entry for entry in runs[1].state.log_history) == 4


def test_trainer__several_evaluation_sets(tmp_path: Path) -> None:
    sets = {"short": rows(4, lengths=(3,)), "long": rows(4, lengths=(8,))}
    metrics = small_trainer(tmp_path, eval_dataset=sets).evaluate()
    assert {"eval_short_loss", "eval_long_loss", "eval_long_bits_per_token_stderr"} <= metrics.keys()


# Losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_trainer__a_loss_that_is_not_finite_stops_before_the_weights(tmp_path: Path, value: float) -> None:
    model = small_model()
    poison(model, call=6, value=value)  # the second micro-step of step 3
    arguments = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(FloatingPointError, match=f"{value} at step 3; .*checkpoint-2"):
        small_trainer(tmp_path, rows(64), model, **arguments).train()
    saved = checkpoint(tmp_path, 2)
    assert is_complete(saved)
    torch.testing.assert_close(weights(model), load_file(saved / "model.safetensors"), rtol=0, atol=0)


def test_trainer__nan_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    model = small_model()
    poison(model, call=1, value=float("nan"))
    start = weights(model)
    with pytest.raises(FloatingPointError, match=r"nan at step 1; .*none"):
        small_trainer(tmp_path, model=model).train()
    torch.testing.assert_close(weights(model), start, rtol=0, atol=0)


def test_trainer__weights_that_are_not_finite_are_not_saved_as_complete(tmp_path: Path) -> None:
    """A finite loss may have a gradient that is not. The last good checkpoint must outlive it."""
    model = small_model()

    class Overflow(Recorder):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                model.heads.tokens.weight.grad.fill_(float("nan"))

    arguments = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 6}
    with pytest.raises(FloatingPointError, match="step"):
        small_trainer(tmp_path, model=model, callbacks=[Overflow()], **arguments).train()
    saved = load_file(checkpoint(tmp_path, 2) / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in saved.values())


# Saving


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    trainer = small_trainer(folder / "run", ema=0.9)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return folder / "model"


def test_trainer__publishes_no_pickle(published: Path) -> None:
    files = {file.name for file in published.iterdir()}
    expected = {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert files == expected


def test_trainer__auto_classes_load_what_is_published(published: Path) -> None:
    """As in a fresh process, which `test_modeling.py` starts."""
    model, tokenizer = (auto.from_pretrained(published) for auto in (AutoModel, AutoTokenizer))
    assert type(model) is GMModel
    ids = model.generate(
        tokenizer("ab[MASK]d", return_tensors="pt")["input_ids"], max_new_tokens=4, num_steps=8, seed=0
    )
    text = tokenizer.decode(ids[0])
    prompt = torch.tensor([TOKENIZER.convert_tokens_to_ids(["a", "b", "[MASK]", "d"])])
    expected = GMModel.from_pretrained(published).generate(prompt, max_new_tokens=4, num_steps=8, seed=0)
    assert torch.equal(ids, expected)
    assert text.startswith("ab")
    assert "[MASK]" not in text


# Errors


def test_trainer__refuses_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer .*10.*vocab_size=8"):
        small_trainer(tmp_path, tokenizer=character_tokenizer(alphabet="abcdef"))
    other = character_tokenizer(alphabet="abcd")
    other.mask_token = "[EOS]"
    with pytest.raises(ValueError, match=r"mask_token_id=6.*mask_token_id=7"):
        small_trainer(tmp_path, tokenizer=other)


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer__an_empty_data_set_is_named(tmp_path: Path, streaming: bool) -> None:
    empty: Any = rows(1).to_iterable_dataset().take(0) if streaming else rows(0)
    with pytest.raises(ValueError, match="train_dataset "):
        small_trainer(tmp_path, empty).train()
    with pytest.raises(ValueError, match="dataloader "):
        small_trainer(tmp_path, eval_dataset=empty).evaluate()


def test_trainer__refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    model = small_model()
    start = weights(model)
    with pytest.raises(ValueError, match=r"8.*vocab_size=8"):
        small_trainer(tmp_path, Dataset.from_dict({"input_ids": [[0, 8]] * 8}), model).train()
    torch.testing.assert_close(weights(model), start, rtol=0, atol=0)


def test_trainer__old_and_unsupported_arguments_are_named(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=r"times .*time_sampler=UniformTimeSampler\(\)"):
        GMTrainer(small_model(), args, times=UniformTimeSampler())
    with pytest.raises(ValueError, match="model_init"):
        GMTrainer(small_model(), args, model_init=small_model)
    with pytest.raises(ValueError, match="compute_metrics"):
        GMTrainer(small_model(), args, compute_metrics=print)


# Precision and optimizers


@pytest.mark.slow
def test_trainer__bfloat16_is_close_to_float32(tmp_path: Path) -> None:
    """A bfloat16 number is off by up to 2^-9 of its size; a network of one block multiplies a handful of such errors."""
    uniform = UniformPath(len(TOKENIZER), special_token_ids=TOKENIZER.all_special_ids)
    for path in (None, uniform):
        full, half = (
            small_trainer(tmp_path, model=small_model(path), max_steps=1, bf16=bf16) for bf16 in (False, True)
        )
        full.train()
        half.train()
        assert losses(half) != losses(full)  # it did run in another precision
        assert losses(half) == pytest.approx(losses(full), rel=10 * 2**-9)
        assert {weight.dtype for weight in half.model.parameters()} == {torch.float32}


def test_muon_adamw__splits_matrices_and_other_parameters() -> None:
    model = small_model(UniformPath(len(TOKENIZER)), conv_kernel_size=3)
    optimizer = MuonAdamW(model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon, adamw = (
        {names[id(weight)] for group in part.param_groups for weight in group["params"]}
        for part in optimizer.parts.values()
    )
    assert muon | adamw == set(names.values())
    assert not muon & adamw
    assert "backbone.layers.0.attention.qkv.weight" in muon
    assert {"heads.tokens.weight", "backbone.embed_tokens.weight", "backbone.time.inner.weight"} <= adamw
    assert not any("norm.norm.weight" in name or name.endswith("bias") for name in muon)


def test_muon_adamw__one_schedule_scales_both(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, muon=True, max_steps=4, lr_scheduler_type="linear")
    rates: list[list[float]] = []

    class Rates(Recorder):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            parts = trainer.optimizer.optimizer.parts.values()
            rates.append([group["lr"] for part in parts for group in part.param_groups])

    trainer.add_callback(Rates())
    trainer.train()
    assert rates == [pytest.approx([0.02 * scale, 0.01 * scale]) for scale in (1, 0.75, 0.5, 0.25)]


def test_trainer__trains_and_evaluates_separate_documents(tmp_path: Path) -> None:
    texts = Dataset.from_dict({"text": ["abcd", "aab", "bcdaabbcc", "d"] * 10})
    packed = pack(texts, TOKENIZER, LENGTH, separate=True)
    model = small_model()
    calls = record_inputs(model)
    trainer = small_trainer(tmp_path, packed, model, eval_dataset=packed, num_eval_samples=2, max_steps=3)
    trainer.train()
    numbers = {tuple(row["attention_mask"]) for row in packed}
    assert len(calls) == 3
    assert all(tuple(row) in numbers for call in calls for row in call["attention_mask"].tolist())
    assert all(math.isfinite(loss) for loss in losses(trainer))
    separate = trainer.bound()
    assert int(separate.num_tokens.sum()) == len(packed) * LENGTH
    together = trainer.bound(packed.remove_columns("attention_mask"))  # at the same noise
    assert not torch.allclose(separate.nats, together.nats, atol=1e-3)
