"""Muon for the matrices of transformer layers, AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gm_discrete.training.adapters import base_model


class MuonAdamW(torch.optim.Optimizer):
    """Muon (orthogonalised momentum, Jordan et al. 2024; `torch.optim.Muon`) for the linear layers of the transformer, AdamW
    for all other parameters. One learning-rate schedule scales both.

    Args:
        model: a `GMModel`, also with an adapter of PEFT.
        lr: learning rate of Muon. Its updates have spectral norm 1, so that this is the absolute size of a step.
        adamw_lr, adamw_betas: learning rate and betas of AdamW.
        momentum: momentum of Muon.
        weight_decay: decoupled weight decay of the matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.02,
        adamw_lr: float = 3e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        layers = base_model(model).backbone.layers.modules()
        linear = {id(module.weight) for module in layers if isinstance(module, nn.Linear)}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = [weight for weight in trained if id(weight) in linear]
        others = [weight for weight in trained if id(weight) not in linear]
        muon = torch.optim.Muon(
            [{"params": matrices}], lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="original"
        )
        adamw = torch.optim.AdamW([{"params": others}], lr=adamw_lr, betas=adamw_betas, weight_decay=0.0, fused=True)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": adamw}

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
