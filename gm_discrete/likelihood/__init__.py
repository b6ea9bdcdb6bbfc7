"""Likelihoods and upper bounds on −log p, all returned as a `Likelihood`."""

from typing import TYPE_CHECKING

from gm_discrete.likelihood.any_order import any_order_bound, any_order_likelihood
from gm_discrete.likelihood.bound import evaluation_mode, likelihood_bound
from gm_discrete.likelihood.fields import field_likelihood
from gm_discrete.likelihood.flow import flow_likelihood
from gm_discrete.likelihood.result import Likelihood
from gm_discrete.renamed import missing_name

__all__ = [
    "Likelihood",
    "any_order_bound",
    "any_order_likelihood",
    "evaluation_mode",
    "field_likelihood",
    "flow_likelihood",
    "likelihood_bound",
]

_RENAMED = {
    "FieldLikelihood": "Likelihood, which field_likelihood returns",
    "FlowLikelihood": "Likelihood, which flow_likelihood returns; its .nats is −log p",
    "LikelihoodBound": "Likelihood",
    "flow_log_likelihood": "flow_likelihood, whose .nats is −log p",
}
"""What to use in place of names of version 0.1."""

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> None:
        raise missing_name(__name__, name, _RENAMED)
