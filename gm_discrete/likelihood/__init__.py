"""Likelihoods and upper bounds on the negative log-likelihood."""

from gm_discrete.likelihood.any_order import any_order_bound, any_order_likelihood
from gm_discrete.likelihood.bound import LikelihoodBound, draw_masks, likelihood_bound
from gm_discrete.likelihood.fields import FieldLikelihood, field_likelihood
from gm_discrete.likelihood.flow import FlowLikelihood, flow_likelihood

__all__ = [
    "FieldLikelihood",
    "FlowLikelihood",
    "LikelihoodBound",
    "any_order_bound",
    "any_order_likelihood",
    "draw_masks",
    "field_likelihood",
    "flow_likelihood",
    "likelihood_bound",
]
