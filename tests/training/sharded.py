"""What `test_sharded.py` starts under torchrun: a model sharded by FSDP 2 over two processes, and the same one whole."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from small_run import LENGTH, rows, small_model
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard

from gm_discrete import LogitNormalTimes, likelihood_bound
from gm_discrete.objective import corrupt
from gm_discrete.training import EMACallback
from gm_discrete.training.trainer import gathered


class Trained:
    """A model, its optimizer and its averaged weights."""

    def __init__(self, sharded: bool) -> None:
        self.model = small_model(num_hidden_layers=3, conv_kernel_size=3)
        if sharded:
            self.model.whole_batches = True
            for block in self.model.backbone.layers[:-1]:
                fully_shard(block)
            fully_shard(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.ema = EMACallback(0.5)
        self.ema.on_train_begin(None, None, None, model=self.model)

    def step(self, x: Tensor, t: Tensor, z: Tensor, items: float) -> float:
        loss = self.model(input_ids=x, time=t, labels=z, num_items_in_batch=items).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.on_step_end(None, State(), None, model=self.model)
        return loss.item()

    def bound(self, z: Tensor) -> list[float]:
        """Of the averaged weights."""
        with self.ema.applied(self.model), gathered(self.model):
            return likelihood_bound(self.model, z, num_samples=2, rng=torch.Generator().manual_seed(5)).nats.tolist()


class State:
    global_step = 100


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    init_process_group("gloo")
    whole, sharded = Trained(sharded=False), Trained(sharded=True)
    z = torch.tensor(rows(8)["input_ids"])
    scored, half = torch.ones_like(z, dtype=torch.bool), slice(4 * rank, 4 * rank + 4)
    record: dict[str, Any] = {"losses": [], "bounds": [], "shard": [], "all": []}
    for step in range(3):
        x, t = corrupt(whole.model.path, z, scored, torch.Generator().manual_seed(step), LogitNormalTimes())
        alone = whole.step(x, t, z, z.numel())
        # FSDP averages gradients: a half's loss per position of that half is the mean's half of the sum.
        part = sharded.step(x[half], t[half], z[half], 4 * LENGTH)
        record["losses"].append((alone, part))
        record["bounds"].append((whole.bound(z), sharded.bound(z)))  # between two training steps
    for mine, theirs in zip(sharded.model.parameters(), whole.model.parameters(), strict=True):
        record["shard"].append(mine.to_local().numel())
        record["all"].append(theirs.numel())
        torch.testing.assert_close(mine.full_tensor(), theirs, rtol=1e-4, atol=1e-6)
    (folder / f"sharded-{rank}.json").write_text(json.dumps(record))
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
