"""Arguments of `generate` that do not fit each other are refused before anything runs, with what does."""

from typing import Any

import pytest
import torch

from gm_discrete import ClassifierGuidance, GaussianPath, GMConfig, GMGenerationConfig, GMModel
from gm_discrete.generation.validation import fitting_samplers
from gm_discrete.samplers import ORDERS, STEPS
from tests.helpers.networks import PATHS, K, network, suits


def never(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise AssertionError("something ran")


@pytest.mark.parametrize("name", PATHS)
def test_the_samplers_that_fit_are_those_that_run(name: str) -> None:
    assert fitting_samplers(PATHS[name]) == tuple(sampler for sampler in STEPS if suits(name, sampler))


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "random"])
@pytest.mark.parametrize("name", ["reversal", "mixture", "prior", "metric"])
def test_an_order_that_fits_no_path_without_masks_is_refused_with_what_fits(name: str, order: str) -> None:
    samplers = ", ".join(fitting_samplers(PATHS[name]))
    with pytest.raises(ValueError, match=f"order='{order}' does not fit .*only 'random' fits .* samplers {samplers}"):
        network(name).generate(order=order)
    network(name).generate(order="random", num_steps=1)


@pytest.mark.parametrize("name", ["reversal", "mixture"])
def test_samplers_of_masks_are_refused_with_those_that_fit(name: str) -> None:
    for sampler in ("first_hitting", "entropy_bounded"):
        with pytest.raises(ValueError, match=f"sampler='{sampler}' does not fit .*; choose one of tau_leaping, euler"):
            network(name).generate(sampler=sampler)


@pytest.mark.parametrize(
    ("name", "settings", "options", "message"),
    [
        ("reversal", {}, {"bad_words_ids": [[1, 2]]}, "bad_words_ids does not fit .*MaskedPath fits"),
        ("reversal", {}, {"block_length": 4}, "needs a MaskedPath"),
        ("masked", {"time_conditioning": True}, {"block_length": 4}, "time_conditioning=False"),
        ("masked", {"block_size": 4}, {"block_length": 3}, "differs from block_size=4"),
        ("masked", {}, {"use_cache": True}, "use_cache=True needs a model with a block_size"),
        (
            "masked", {"block_size": 4, "num_classes": 2},
            {"use_cache": True, "class_labels": [0], "guidance_scale": 2.0}, "asks two",
        ),
        ("masked", {}, {"guidance_scale": 2.0}, "needs class_labels"),
        (
            "masked", {"num_classes": 2},
            {"class_labels": [0], "guidance_scale": 2.0, "guidance": "raw", "sampler": "first_hitting"},
            "choose one of tau_leaping, ancestral, euler, or guidance='normalized'",
        ),
        ("mixture", {}, {"predictor": ClassifierGuidance(never)}, "Bayes' rule"),
        ("masked", {}, {"predictor": ClassifierGuidance(never), "sampler": "adaptive"}, "one of tau_leaping, ancestral, euler$"),  # noqa: E501
        ("masked", {}, {"predictor": ClassifierGuidance(never), "block_length": 4}, "predictor: not of generation in blocks"),  # noqa: E501
        ("masked", {}, {"order": "confidence", "sampler": "euler"}, "order is an option of tau_leaping and entropy_bounded"),
        ("masked", {}, {"order": "best"}, "random, confidence, margin, entropy"),
        ("masked", {}, {"entropy_bound": 0.1}, "option of entropy_bounded"),
        ("masked", {}, {"guidance": "strong"}, "'normalized' or 'raw'"),
        ("masked", {}, {"temperature": (1.0, 0.0)}, "positive, a pair"),
        ("masked", {}, {"temperature": (1.0, 0.5, 0.2)}, "positive, a pair"),
        ("masked", {}, {"bad_words_ids": [[]]}, "list of lists of ids"),
        ("masked", {}, {"block_length": 0}, "integer ≥ 1"),
        ("masked", {}, {"bad_words_ids": [5, 6]}, "list of lists of ids"),
        ("masked", {}, {"bad_words_ids": [[99]]}, "bad_words_ids=.*vocab_size=11"),
        ("masked", {}, {"bad_words_ids": [[k] for k in range(10)]}, "leaves no symbol"),
        ("masked", {}, {"block_length": 4, "eos_token_id": 99}, "eos_token_id=99 must hold ids below"),
        ("masked", {}, {"block_length": 4, "eos_token_id": "a"}, "eos_token_id='a'|eos_token_id=.a. must hold"),
        ("masked", {}, {"pad_token_id": 11}, "pad_token_id=11 must hold ids below"),
        ("masked", {}, {"eos_token_id": 3}, "eos_token_id=3 ends sequences that are generated in blocks"),
        ("masked", {}, {"guidance": "raw"}, "give guidance_scale to say how much"),
        (
            "masked", {}, {"predictor": ClassifierGuidance(never), "corrector": {"type": "remdm"}}, "which guided rates leave",  # noqa: E501
        ),
        (
            "reversal", {"num_classes": 2},
            {"class_labels": [0], "guidance_scale": 2.0, "guidance": "raw", "top_k": 2}, "or a MaskedPath, fits",
        ),
        ("masked", {}, {"generators": {"jump": 1.0}}, "symbols only jump"),
        ("masked", {}, {"given": {}}, "give symbols as input_ids"),
    ],
)  # fmt: skip
def test_misfits_are_named_with_their_cure(name: str, settings: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(name, **settings).generate(**options)


@pytest.mark.parametrize("corrector", ["detailed_balance", "remdm"])
def test_correctors_and_orders_want_opposite_things(corrector: Any) -> None:
    with pytest.raises(ValueError, match="order='random' fits"):
        network("masked").generate(order="confidence", corrector={"type": corrector})


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (torch.ones(3, K, dtype=torch.bool), "allowed_symbols must be bool"),
        (torch.ones(12, K), "allowed_symbols must be bool"),
        (torch.zeros(12, K, dtype=torch.bool), "no symbol at position 0 of sequence 0"),
    ],
)
def test_allowed_symbols_are_checked(allowed: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network("masked").generate(allowed_symbols=allowed)


def test_the_mask_itself_is_not_allowed() -> None:
    allowed = torch.zeros(12, K, dtype=torch.bool)
    allowed[:, K - 1] = True
    with pytest.raises(ValueError, match="no symbol at position 0"):
        network("masked").generate(allowed_symbols=allowed)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.5},
        {"max_new_tokens": 5},
        {"eos_token_id": 4},
        {"pad_token_id": 4},
    ],
    ids=str,
)
def test_models_of_numbers_take_nothing_of_symbols(options: dict) -> None:
    model = GMModel(GMConfig(path=GaussianPath(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=f"{next(iter(options))}: of symbols, and this model is of numbers"):
        model.generate(length=1, num_steps=1, **options)


def test_a_random_order_takes_back_an_order_of_the_config() -> None:
    model = network("masked")
    model.generation_config = GMGenerationConfig(order="margin", order_temperature=0.5, num_steps=4)
    ordered, law = model.generate(seed=0), model.generate(seed=0, order="random")
    assert torch.equal(law, network("masked").generate(seed=0, num_steps=4))
    assert not torch.equal(ordered, law)
