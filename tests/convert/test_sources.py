"""Where checkpoints of others lie: Lightning's files, shards, folders of training runs, the cache of the hub."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath
from gm_discrete.convert import convert, main
from tests.helpers.published import CONDITION, CONFIGS, DEPTH, HEADS, LENGTH, WIDTH, K, state_dict

MODEL = {
    "name": "tiny", "type": "ddit", "hidden_size": WIDTH, "cond_dim": CONDITION, "length": LENGTH, "n_blocks": DEPTH,
    "n_heads": HEADS, "scale_by_sigma": True, "dropout": 0.1, "tie_word_embeddings": False,
}  # fmt: skip
NESTED: dict[str, dict[str, Any]] = {
    "mdlm": {
        "mode": "train", "backbone": "dit", "parameterization": "subs", "time_conditioning": True, "T": 0,
        "loader": {"batch_size": "${div_up:${.global_batch_size},2}"}, "noise": {"type": "loglinear"}, "model": MODEL,
    },
    "duo": {
        "algo": {"name": "duo", "backbone": "dit", "parameterization": "mean", "time_conditioning": True,
                 "causal_attention": False},
        "noise": {"type": "log-linear", "eps": 1e-2}, "model": MODEL,
    },
    "sedd": {
        "tokens": K - 1, "graph": {"type": "absorb"}, "model": MODEL,
        "noise": {"type": "geometric", "sigma_min": "1e-4", "sigma_max": 20},
    },
}  # fmt: skip
"""Configs of training runs, as their own code writes them."""


def shadow() -> list[torch.Tensor]:
    return [tensor for name, tensor in state_dict(1).items() if "inv_freq" not in name]


def converted(*arguments: Any, **options: Any) -> Any:
    """The model as it is read back from the folder that was written."""
    return GMModel.from_pretrained(convert(*arguments, **options))


def bias(seed: int) -> torch.Tensor:
    """A parameter of the network, by which last and averaged weights are told apart."""
    return state_dict(seed)["output_layer.linear.bias"]


# ---- Lightning


def omegaconf(value: Any, module: dict[str, ModuleType], parent: Any = None) -> Any:
    """The value as an object of OmegaConf 2.3: classes, attributes and references to the parent as there."""

    def instance(place: str, name: str, attributes: dict[str, Any]) -> Any:
        kind = vars(module[place]).setdefault(name, type(name, (), {"__module__": place}))
        made = kind.__new__(kind)
        made.__dict__.update(attributes)
        return made

    is_dict, is_list = isinstance(value, dict), isinstance(value, list)
    container = {"flags": {}, "key_type": Any, "element_type": Any} if is_dict or is_list else {}
    metadata = {"ref_type": Any, "object_type": dict if is_dict else None, "optional": True, "key": None, **container}
    kind = "ContainerMetadata" if container else "Metadata"
    attributes: dict[str, Any] = {"_metadata": instance("omegaconf.base", kind, metadata), "_parent": parent}
    if is_dict:
        node = instance("omegaconf.dictconfig", "DictConfig", attributes)
        node._content = {key: omegaconf(part, module, node) for key, part in value.items()}
    elif is_list:
        node = instance("omegaconf.listconfig", "ListConfig", attributes)
        node._content = [omegaconf(part, module, node) for part in value]
    else:
        node = instance("omegaconf.nodes", "AnyNode", {**attributes, "_val": value})
    return node


def fast_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {"a": 0, "b": 1, "[MASK]": 2, "[UNK]": 3, "<eos>": 4, "c": 5}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))  # pyright: ignore
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>", **special)  # pyright: ignore


@pytest.fixture
def lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a checkpoint as Lightning does, with the modules of its classes gone when it returns."""

    def write(config: dict[str, Any], tokenizer: Any, file: Path = tmp_path / "last.ckpt") -> Path:
        names = ("base", "dictconfig", "listconfig", "nodes")
        modules = {f"omegaconf.{name}": ModuleType(f"omegaconf.{name}") for name in names}
        modules["omegaconf"], modules["dataloader"] = (ModuleType(name) for name in ("omegaconf", "dataloader"))
        content = {
            "epoch": 0, "global_step": 2, "pytorch-lightning_version": "2.2.1",
            "state_dict": {f"backbone.{name}": tensor for name, tensor in state_dict(0).items()},
            "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 0}}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/outputs/best.ckpt"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 3e-4}]}],
            "lr_schedulers": [{"last_epoch": 2}], "hparams_name": "kwargs",
            "hyper_parameters": {"config": omegaconf(config, modules), "tokenizer": tokenizer},
            "ema": {"decay": 0.9999, "num_updates": 2, "shadow_params": shadow()}, "sampler": {"random_state": None},
        }  # fmt: skip
        kind = type(tokenizer)
        with monkeypatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            if kind.__module__ == "dataloader":
                vars(modules["dataloader"])[kind.__name__] = kind
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, file)
        assert "omegaconf.nodes" not in sys.modules
        return file

    return write


def test_convert__reads_lightning_files_with_their_config_tokenizer_and_average(tmp_path: Path, lightning: Any) -> None:
    file = lightning(NESTED["mdlm"], fast_tokenizer(mask_token="[MASK]"))
    model = converted(file, tmp_path / "model")
    config = model.config
    assert model.path == MaskedPath(K, 2)  # the tokenizer's mask
    assert (config.num_attention_heads, config.max_position_embeddings, config.hidden_dropout) == (HEADS, LENGTH, 0.1)
    assert config.time_conditioning
    assert torch.equal(model.heads.tokens.bias, bias(1))
    assert torch.equal(converted(file, tmp_path / "last", ema=False).heads.tokens.bias, bias(0))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("c a")["input_ids"] == [5, 0]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (2, 4)


def test_convert__lightning_file_without_a_mask_token_has_the_last_symbol(tmp_path: Path, lightning: Any) -> None:
    file = lightning(NESTED["mdlm"], fast_tokenizer())
    assert converted(file, tmp_path / "model").path == MaskedPath(K)
    assert converted(file, tmp_path / "given", mask_token_id=1).path == MaskedPath(K, 1)


@pytest.mark.parametrize("named", [True, False])
def test_convert__reads_the_mask_of_slow_tokenizers(tmp_path: Path, lightning: Any, named: bool) -> None:
    """As MDLM's own tokenizer of characters, and transformers 4 with `AddedToken`s."""
    kind = type("Text8Tokenizer", (), {"__module__": "dataloader"})
    tokenizer: Any = kind()
    tokenizer._mask_token = tokenizers.AddedToken("[MASK]", special=True)
    tokenizer._vocab_str_to_int = {"[CLS]": 0, "[MASK]" if named else "[M]": 4, "a": 5}
    file = lightning(NESTED["mdlm"], tokenizer)
    if named:
        assert converted(file, tmp_path / "model").path == MaskedPath(K, 4)
        assert not (tmp_path / "model" / "tokenizer.json").exists()
    else:
        with pytest.raises(ValueError, match=r"mask_token_id is missing.*'\[MASK\]'"):
            convert(file, tmp_path / "model")


def test_convert__reads_lightning_files_of_duo(tmp_path: Path, lightning: Any) -> None:
    model = converted(lightning(NESTED["duo"], fast_tokenizer()), tmp_path / "model")
    assert model.path == UniformPath(K)
    assert model.config.noise_range == pytest.approx([0, 4.605170])  # −log 0.01
    given = converted(tmp_path / "last.ckpt", tmp_path / "given", eps=0.1)
    assert given.config.noise_range == pytest.approx([0, 2.302585])


@pytest.mark.parametrize(
    ("changes", "family", "message"),
    [
        ({"algo": {"name": "duo_base"}}, "duo", None),
        ({"algo": {"name": "distillation"}}, "duo", None),
        ({"algo": {"name": "sedd"}}, "masked", None),
        ({"algo": {"name": "mdlm", "time_conditioning": False}}, "masked", None),
        ({"parameterization": "sedd"}, "masked", None),
        ({"algo": {"name": "ar", "causal_attention": True}}, None, "causal"),
        ({"algo": {"name": "ot-finetune"}}, None, r"family is missing.*algo\.name='ot-finetune'"),
        ({"parameterization": "d3pm"}, None, r"parameterization='d3pm': D3PM's network is not converted"),
        ({"model": {**MODEL, "n_heads": 0}}, None, r"n_heads in the config of source=0 must be an integer ≥ 1"),
        ({"model": {**MODEL, "n_heads": 3}}, None, r"not clear: 3 by the config, 2 by rotary_emb\.inv_freq"),
        ({"model": {**MODEL, "n_heads": "two"}}, None, r"'two' as model\.n_heads"),
        ({"model": {**MODEL, "length": 2.5}}, None, r"length in the config of source=2\.5"),
        ({"model": {**MODEL, "length": [1]}}, None, r"an object as model\.length"),
        ({"model": {**MODEL, "dropout": 7}}, None, r"dropout=7"),
        ({"noise": {"type": "geometric", "sigma_min": 3, "sigma_max": 2}}, None, r"sigma_min=3 and sigma_max=2"),
        ({"noise": {"type": "log-linear", "eps": -1}}, None, r"noise\.eps=-1"),
    ],
)
def test_convert__takes_the_family_from_configs_of_runs(
    tmp_path: Path, lightning: Any, changes: dict[str, Any], family: str | None, message: str | None
) -> None:
    file = lightning({**NESTED["mdlm"], **changes}, fast_tokenizer())
    if message is None:
        assert converted(file, tmp_path / "model").path == (UniformPath(K) if family == "duo" else MaskedPath(K))
    else:
        with pytest.raises(ValueError, match=message):
            convert(file, tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameterization": "d3pm"}, r"has parameterization='d3pm': D3PM's network is not converted"),
        ({"parameterization": "ar"}, r"has parameterization='ar': an autoregressive network"),
        ({"algo": {"name": "bd3lm", "parameterization": "subs"}}, r"has algo\.name='bd3lm': BD3-LM's"),
        ({"algo": {"name": "mdlm", "parameterization": "d3pm"}}, r"has algo\.parameterization='d3pm'"),
        ({"backbone": "dimamba"}, r"has backbone='dimamba'"),
        ({"diffusion": "uniform"}, r"has diffusion='uniform'"),
    ],
)
def test_convert__no_family_overrides_a_config_of_another_kind(
    tmp_path: Path, lightning: Any, changes: dict[str, Any], message: str
) -> None:
    file = lightning({**NESTED["mdlm"], **changes}, fast_tokenizer())
    for family in ("mdlm", None):
        with pytest.raises(ValueError, match=message):
            convert(file, tmp_path / "model", family)
    assert not (tmp_path / "model").exists()


def test_convert__cosine_noise_of_duo_ends_where_it_does_there(tmp_path: Path, lightning: Any) -> None:
    noise = {"type": "cosine", "eps": 1e-3}
    model = GMModel.from_pretrained(
        convert(lightning({**NESTED["duo"], "noise": noise}, fast_tokenizer()), tmp_path / "model")
    )
    kappa = 1 - torch.cos(torch.tensor(torch.pi / 2 * 1e-3).double())  # of their `Cosine` at τ = 1
    assert model.config.noise_range == pytest.approx([0, -float(kappa.log())])


# ---- folders


def sharded(at: Path, ending: str) -> Path:
    """A folder whose weights are in two files and an index, as `save_pretrained` of large models writes them."""
    at.mkdir()
    state = {f"backbone.{name}": tensor.contiguous() for name, tensor in state_dict().items()}
    names = [*state]
    whole = "model" if ending == "safetensors" else "pytorch_model"
    files = [f"{whole}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        tensors = {name: state[name] for name in part}
        save_file(tensors, at / file) if ending == "safetensors" else torch.save(tensors, at / file)
    places = {name: files[i % 2] for i, name in enumerate(names)}
    (at / f"{whole}.{ending}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8"
    )
    (at / "config.json").write_text(json.dumps(CONFIGS["duo"]), encoding="utf-8")
    return at


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_convert__reads_shards(tmp_path: Path, ending: str) -> None:
    source = sharded(tmp_path / "source", ending)
    assert torch.equal(converted(source, tmp_path / "model").heads.tokens.bias, bias(0))
    next(source.glob("*-00002-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks .*-00002-of-00002"):
        convert(source, tmp_path / "other")


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../source/model-00001-of-00002.safetensors"}}',
     '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": 3}}', "[" * 100_000],
    ids=["list", "no JSON", "no map", "empty", "outside", "absolute", "number", "deep"],
)  # fmt: skip
def test_convert__refuses_indexes_that_are_none(tmp_path: Path, content: str) -> None:
    source = sharded(tmp_path / "source", "safetensors")
    (source / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        convert(source, tmp_path / "model")


def test_convert__reads_folders_of_training_runs(tmp_path: Path, lightning: Any) -> None:
    run = tmp_path / "sedd"
    (run / "checkpoints-meta").mkdir(parents=True)
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(NESTED["sedd"]), encoding="utf-8")
    named = {f"module.{name}": tensor for name, tensor in state_dict().items()}
    average = {"decay": 0.9999, "num_updates": 3, "shadow_params": shadow()}
    torch.save({"model": named, "ema": average, "step": 3}, run / "checkpoints-meta" / "checkpoint.pth")
    model = converted(run, tmp_path / "model")
    assert torch.equal(model.heads.tokens.bias, bias(1))
    assert model.path == MaskedPath(K)
    assert model.config.noise_range == [1e-4, 20.0]
    lightning(NESTED["duo"], fast_tokenizer(), tmp_path / "duo" / "checkpoints" / "last.ckpt")
    assert converted(tmp_path / "duo", tmp_path / "of duo").path == UniformPath(K)


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "!!python/object/apply:os.system ['touch canary']"])
def test_convert__refuses_configs_of_runs_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    torch.save(state_dict(), tmp_path / "run" / "only.pth")
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        convert(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "canary").exists()


def test_convert__takes_the_only_weights_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    torch.save({"state_dict": state_dict()}, tmp_path / "a" / "mdlm.ckpt")
    assert converted(tmp_path / "a", tmp_path / "model", "mdlm").path == MaskedPath(K)
    torch.save({"state_dict": state_dict()}, tmp_path / "a" / "duo.ckpt")
    with pytest.raises(ValueError, match=r"several weights files: duo\.ckpt, mdlm\.ckpt"):
        convert(tmp_path / "a", tmp_path / "other", "mdlm")


# ---- links


LINKED = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    ".hydra/config.yaml",
    "model-00002-of-00002.safetensors",
)


@pytest.mark.parametrize("name", LINKED)
def test_convert__refuses_links_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    source = sharded(tmp_path / "source", "safetensors")
    (secret := tmp_path / "secret").write_text("{}", encoding="utf-8")
    file = source / name
    if name.startswith(".hydra"):
        (source / "config.json").unlink()
        (tmp_path / "hydra").mkdir()
        (tmp_path / "hydra" / "config.yaml").write_text("{}", encoding="utf-8")
        (source / ".hydra").symlink_to(tmp_path / "hydra")
    else:
        file.unlink(missing_ok=True)
        file.symlink_to(secret)
    with pytest.raises(ValueError, match=rf"a link that leads out of it: {name}"):
        convert(source, tmp_path / "model", "duo")
    assert not (tmp_path / "model").exists()


def test_convert__refuses_links_out_of_folders_of_its_own(tmp_path: Path) -> None:
    GMModel(GMConfig(path=MaskedPath(4), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "source"
    )
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "source" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"a link that leads out of it: model\.safetensors"):
        convert(tmp_path / "source", tmp_path / "model")


def test_convert__follows_links_within_the_folder_and_to_it(tmp_path: Path) -> None:
    source = sharded(tmp_path / "source", "safetensors")
    (source / "config.json").rename(source / "settings.json")
    (source / "config.json").symlink_to("settings.json")
    (tmp_path / "alias").symlink_to(source)
    assert converted(tmp_path / "alias", tmp_path / "model").path == UniformPath(K)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="dangling"):
        convert(tmp_path / "dangling", tmp_path / "other")


# ---- the hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one model, as `huggingface_hub` lays it out, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "cache" / "models--some--duo-owt"
    snapshot = home / "snapshots" / "a1"
    for folder in ("blobs", "refs", "snapshots/a1"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text("a1", encoding="utf-8")
    (home / "blobs" / "1").write_text(json.dumps(CONFIGS["duo"]), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state_dict().items()}, home / "blobs" / "2")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    return snapshot


def test_convert__takes_the_id_of_a_model_that_is_in_the_cache(tmp_path: Path, cache: Path) -> None:
    assert torch.equal(converted("some/duo-owt", tmp_path / "model").heads.tokens.bias, bias(0))
    assert converted(cache, tmp_path / "of folder").path == UniformPath(K)
    (tmp_path / "secret").write_text("{}", encoding="utf-8")
    (cache / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"a link that leads out of it: tokenizer\.json"):
        convert("some/duo-owt", tmp_path / "other")


@pytest.mark.usefixtures("cache")
def test_convert__says_that_the_hub_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"source='some/other'.*hub"):
        convert("some/other", tmp_path / "model")
    for name in ("some/other", "../up/there", "a/b/c", "https://hub.co/some/duo-owt", "", "\0", "x" * 5000):
        with pytest.raises(SystemExit) as stop:
            main([name, str(tmp_path / "model")])
        assert (stop.value.code, len(capsys.readouterr().err.splitlines())) == (2, 1), name


def test_convert__downloads_only_weights_and_settings(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if "*.bin" in allow_patterns:
            torch.save(state_dict(), cache / "pytorch_model.bin")
        return str(cache)

    monkeypatch.setattr("gm_discrete.convert.sources.snapshot_download", download)
    assert converted("some/duo-owt", tmp_path / "model").path == UniformPath(K)
    assert asked == [["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]]
    (cache / "model.safetensors").unlink()
    assert converted("some/duo-owt", tmp_path / "other").path == UniformPath(K)
    assert asked[-1] == ["*.json", "*.jinja", "*.txt", "*.model", "*.bin", "*.ckpt", "*.pth", "*.pt"]


# ---- the command line


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--length", "-5"], {}, "length=-5 must be an integer ≥ 1"),
        (["--num-attention-heads", "0"], {}, "num_attention_heads=0 must be an integer ≥ 1"),
        (["--eps", "nan"], {}, "eps=nan"),
        (["--mask-token-id", "-1", "--family", "mdlm"], {}, "mask_token_id=-1"),
        (["--mask-token-id", "99", "--family", "mdlm"], {}, "mask_token_id=99"),
        ([], {"n_heads": 0}, "n_heads in the config of source=0"),
        ([], {"n_heads": None}, ""),
        ([], {"model_length": -1}, "length in the config of source=-1"),
        ([], {"dropout": "much"}, "'much' as dropout"),
        ([], {"model_type": ["duo"]}, "family is missing"),
        ([], {"model_type": "gm_discrete"}, "its weights lack"),
    ],
)
def test_convert_command__says_in_one_line_what_is_wrong_with_options_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], changes: dict[str, Any], message: str
) -> None:
    source = sharded(tmp_path / "source", "safetensors")
    (source / "config.json").write_text(json.dumps({**CONFIGS["duo"], **changes}), encoding="utf-8")
    arguments = [str(source), str(tmp_path / "model"), *options]
    if not message:
        main(arguments)
        return
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
    assert (stop.value.code, len(lines)) == (2, 1), lines
    assert message in lines[0]


@pytest.mark.parametrize("at", ["last", "average", "own folder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_convert__refuses_weights_that_are_not_finite(tmp_path: Path, at: str, value: float) -> None:
    state, average = state_dict(), shadow()
    (average[3] if at == "average" else state["sigma_map.mlp.2.weight"])[0] = value
    source = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "ema": {"shadow_params": average if at == "average" else []}}, source)
    family: str | None = "duo"
    if at == "own folder":
        model = GMModel(GMConfig(path=MaskedPath(4), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        next(iter(model.parameters())).data[0] = value
        source, family = tmp_path / "own", None
        model.save_pretrained(source)
    with pytest.raises(ValueError, match=r"\w+\.\w+ of source holds NaN or infinity in \d+ of \d+ values"):
        convert(source, tmp_path / "model", family)
    assert not (tmp_path / "model").exists()


def test_convert__refuses_quantized_weights_and_far_block_numbers(tmp_path: Path) -> None:
    state = state_dict() | {"blocks.0.mlp.0.bias": state_dict()["blocks.0.mlp.0.bias"].to(torch.int8)}
    torch.save(state, tmp_path / "int8.pt")
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.0\.bias of source is of torch\.int8"):
        convert(tmp_path / "int8.pt", tmp_path / "model", "duo")
    torch.save(state_dict() | {"blocks.999999999999.norm1.weight": torch.zeros(WIDTH)}, tmp_path / "far.pt")
    with pytest.raises(ValueError, match=r"unexpected blocks\.999999999999\.norm1\.weight"):
        convert(tmp_path / "far.pt", tmp_path / "model", "duo")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": "gm_discrete"', "\0"])
def test_convert__refuses_config_files_that_are_none(tmp_path: Path, content: str) -> None:
    source = sharded(tmp_path / "source", "safetensors")
    (source / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08" + b"\0" * 7 + b"{}      "])
def test_convert__refuses_own_folders_with_damaged_weights(tmp_path: Path, data: bytes) -> None:
    GMModel(GMConfig(path=MaskedPath(4), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "source"
    )
    (tmp_path / "source" / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"source=.*damaged"):
        convert(tmp_path / "source", tmp_path / "model")
