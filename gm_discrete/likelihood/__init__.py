"""Likelihoods and upper bounds on −log p, all returned as a `Likelihood`."""

from gm_discrete.likelihood.any_order import any_order_bound, any_order_likelihood
from gm_discrete.likelihood.bound import evaluation_mode, likelihood_bound
from gm_discrete.likelihood.fields import field_likelihood
from gm_discrete.likelihood.flow import flow_likelihood
from gm_discrete.likelihood.result import Likelihood

__all__ = [
    "Likelihood",
    "any_order_bound",
    "any_order_likelihood",
    "evaluation_mode",
    "field_likelihood",
    "flow_likelihood",
    "likelihood_bound",
]
