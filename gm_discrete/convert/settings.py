"""Settings that the shapes of the weights do not determine, from the config files of MDLM, SEDD and Duo."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from gm_discrete.convert.pickles import within

FAMILIES = ("mdlm", "sedd-absorb", "sedd-uniform", "duo")

ALGORITHMS = {"duo": "duo", "duo_base": "duo", "distillation": "duo", "mdlm": "mdlm", "sedd": "sedd-absorb"}
"""Families by `algo.name` in configs of Duo's code."""

PARAMETERIZATIONS = {"subs": "mdlm", "sedd": "sedd-absorb"}
"""Families by `parameterization` in configs of MDLM's code."""

FOREIGN = {
    "ar": "an autoregressive network",
    "bd3lm": "BD3-LM's network, which reads noisy and clean blocks together",
    "d3pm": "D3PM's network",
    "dimamba": "a Mamba",
    "udlm": "UDLM's network",
}
"""Kinds of models in configs of code that descends from MDLM's, which no family stands for."""


@dataclass(frozen=True)
class Settings:
    """Settings of a checkpoint; `None` where its config lacks them.

    Attributes:
        kind: the entry of the config that names the kind of model, for messages.
        noise_range: least and greatest σ̄ of training.
    """

    kind: str = "it has no config"
    family: str | None = None
    num_attention_heads: int | None = None
    length: int | None = None
    dropout: float = 0.0
    time_conditioning: bool | None = None
    noise_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, config: object) -> Settings:
        """
        Args:
            config: a dict or an unread OmegaConf config: nested, of a training run (`model`, `noise`, and SEDD's `graph`,
                MDLM's `parameterization`, Duo's `algo`), or the flat one of MDLM's and Duo's folders.

        Raises:
            ValueError: it is that of another kind of model, or a setting is out of range.
        """
        if not config:
            return cls()
        nested = within(config, "model") is not None
        algorithm = _word(config, "algo", "name")
        if not nested:
            kind = _word(config, "model_type")
            family, found = str(kind).lower(), f"model_type={kind!r}"
        elif graph := _word(config, "graph", "type"):
            family, found = f"sedd-{graph}", f"graph.type={graph!r}"
        elif algorithm is not None:
            family, found = ALGORITHMS.get(algorithm), f"algo.name={algorithm!r}"
        else:
            kind = _word(config, "parameterization")
            family, found = PARAMETERIZATIONS.get(str(kind)), f"parameterization={kind!r}"
        if within(config, "causal") or within(config, "algo", "causal_attention"):
            raise ValueError(
                "the config of source has causal=true: an autoregressive network does not predict all positions"
            )
        _refuse_foreign(config)
        within_model = ("model",) if nested else ()
        dropout = _number(config, *within_model, "dropout")
        heads = _number(config, *within_model, "n_heads")
        length = _number(config, *within_model, "length" if nested else "model_length")
        timed = within(config, *(("algo",) if algorithm is not None else ()), "time_conditioning")
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"the config of source has dropout={dropout}; expected a number in [0, 1)")
        return cls(
            kind=f"its config has {found}",
            family=family if family in FAMILIES else None,
            num_attention_heads=positive("n_heads in the config of source", heads),
            length=positive("length in the config of source", length),
            dropout=dropout or 0.0,
            time_conditioning=timed if isinstance(timed, bool) else None,
            noise_range=_noise_range(config, of_duo=algorithm is not None),
        )


def _refuse_foreign(config: object) -> None:
    """
    Raises:
        ValueError: the config is that of a kind of model that no family stands for.
    """
    places = [("model_type",), ("algo", "name"), ("parameterization",), ("algo", "parameterization"), ("backbone",),
              ("algo", "backbone")]  # fmt: skip
    found = {".".join(place): _word(config, *place) for place in places}
    for name, value in found.items():
        if (what := FOREIGN.get(str(value).lower())) is not None:
            raise ValueError(f"the config of source has {name}={value!r}: {what} is not converted, whatever the family")
    if _word(config, "diffusion") == "uniform":
        raise ValueError(
            "the config of source has diffusion='uniform': of uniform noise only Duo is converted, whatever the family"
        )


def _noise_range(config: object, of_duo: bool) -> tuple[float, float] | None:
    kind, eps = _word(config, "noise", "type"), _number(config, "noise", "eps")
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"the config of source has noise.eps={eps}; expected a number between 0 and 1")
    if kind in ("geometric", "linear"):  # σ̄ = σ_min^(1−τ) σ_max^τ, or linear in τ
        least, greatest = (_number(config, "noise", name) for name in ("sigma_min", "sigma_max"))
        if least is None or greatest is None or not 0 <= least < greatest < math.inf:
            raise ValueError(
                f"the config of source has sigma_min={least} and sigma_max={greatest}; expected 0 ≤ least < greatest"
            )
        return least, greatest
    if eps is None:
        return None
    if kind == "cosine" and of_duo:  # κ = 1 − cos(π/2 (1 − (1 − ε)τ))
        return 0.0, -math.log(2 * math.sin(math.pi * eps / 4) ** 2)
    return 0.0, -math.log(eps)


def _word(config: object, *names: str) -> str | None:
    value = within(config, *names)
    return value if isinstance(value, str) else None


def _number(config: object, *names: str) -> float | None:
    """A number of the config; `None` if there is none, or one that refers to another (`${…}`).

    Raises:
        ValueError: it is something else.
    """
    value = within(config, *names)
    if value is None or (isinstance(value, str) and value.startswith("${")):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    with contextlib.suppress(ValueError):
        if isinstance(value, str):  # YAML reads 1e-4 as one
            return float(value)
    found = repr(value) if isinstance(value, str | bool) else "an object"
    raise ValueError(f"the config of source has {found} as {'.'.join(names)}; expected a number")


def positive(name: str, value: object) -> int | None:
    """The value, if it is an integer ≥ 1 or `None`.

    Raises:
        ValueError: it is none.
    """
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{name}={value!r} must be an integer ≥ 1")
