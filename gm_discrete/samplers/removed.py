"""What version 0.1 had and this version has not, and what takes its place; messages and old configs use these tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REMOVED = {
    "step_doubling": "adaptive",
    "stratified_hazard": "tau_leaping",
    "eta_noise": "remdm or detailed_balance",
    "backward_noise": "remdm or detailed_balance",
    "logarithmic": "quadratic",
}
"""Names of samplers, correctors and spacings, and the names to use in their place."""

OLD_OPTIONS = {
    "method": "sampler='heun'",
    "predictor": "ClassifierGuidance(log_prob, scale=1.0).guided(process) as the process",
    "max_expected_changes": "sampler=Adaptive(max_expected_changes=2.0)",
    "tolerance": "sampler=Adaptive(tolerance=0.001), Uniformization(tolerance=…) or DormandPrince(tolerance=…)",
    "order": "sampler=TauLeaping(order='confidence') or EntropyBounded(order=…)",
    "order_temperature": "sampler=TauLeaping(order='confidence', order_temperature=1.0)",
    "entropy_bound": "sampler=EntropyBounded(entropy_bound=0.1)",
}
"""Arguments of `simulate`, and the new form of each."""


def hint(name: object) -> str:
    """The end of an error message that names what takes the place of a removed name; empty for other names."""
    if not isinstance(name, str) or name not in REMOVED:
        return ""
    return f"; version 0.1 had {name!r}: use {REMOVED[name]} in its place"


def refuse_old_options(options: Mapping[str, Any]) -> None:
    """
    Raises:
        TypeError: one of them was an argument of `simulate` in version 0.1; the message names its new form.
    """
    for name, value in options.items():
        if name == "method":
            replacement = REMOVED.get(value, value) if isinstance(value, str) else value
            raise TypeError(f"method={value!r} is called sampler: give sampler={replacement!r}")
        if name == "predictor":
            raise TypeError(f"predictor is no argument of simulate: give {OLD_OPTIONS[name]}")
        if name in OLD_OPTIONS:
            kind = OLD_OPTIONS[name].removeprefix("sampler=").split("(")[0]
            raise TypeError(f"{name} is an option of {kind}: {OLD_OPTIONS[name]}")
