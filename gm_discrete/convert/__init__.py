"""Published MDLM, SEDD and Duo checkpoints as `GMModel` folders: `python -m gm_discrete.convert SOURCE DESTINATION`.

All three families share a network, the DiT of Lou et al. (see `models/dit.py`), told the total noise σ̄ ≥ 0 of a process
that runs from data to noise. Here time runs the other way, and the law depends on it through κ alone:

    κ = exp(−σ̄),   log-linear noise: σ̄(τ) = −log(1 − (1 − ε)τ),  so with κ = t:  τ = (1 − t)/(1 − ε)

(SEDD, arXiv 2310.16834, `noise_lib.py`; κ is the α_t = exp(−σ̄) of MDLM, arXiv 2406.07524, and of Duo, arXiv 2506.10892).
As κ is all that counts, the schedule of the converted model is linear, and the network is told σ̄ = −log κ(t), cut off at
the end of its own schedule (`GMConfig.noise_range`): there the originals start, here κ goes on to 0. With u(x, σ̄) ∈ ℝᴷ the
network's raw output at one position:

- **MDLM** (SUBS parameterisation). π(z|x) = softmax(u) without the mask symbol, and revealed symbols carry over: what
  `MaskedPath` makes of logits u. Unless it was trained with `time_conditioning`, the network is told σ̄ = 0 always.

- **SEDD, absorbing** (`graph_lib.py`). exp(u), divided by (K − 1)(e^σ̄ − 1) with `scale_by_sigma`, is the score
  s(y) = p_t(y)/p_t(mask), of which the exact one is s(y) = π(y) κ/(1 − κ) = π(y)/(e^σ̄ − 1). So π ∝ exp(u), with or without
  that factor: it is the same for all y. The network's Z = Σ s(y)(e^σ̄ − 1) need not be 1. SEDD unmasks at the rate hZ, the
  converted model at h, the rate at which symbols were masked; of their bounds one has −log(Zπ(z)) + Z − 1 where the other
  has −log π(z), which is not larger, since log Z ≤ Z − 1.

- **SEDD, uniform**, is refused. There p_t(y|others) = κν(y) + (1 − κ)/K for a belief ν, so that a score that stems from one
  obeys s(y)/Σs ≥ (1 − κ)/K for every y. Nothing makes the network's scores obey that, and where they do not, ν is negative.

- **Duo** (`algo.py`), with the reverse process and the bound of UDLM (arXiv 2412.10193). Its reverse law is

      q(x_s|x_t) = [κ_t K x̂⊙x_t + (κ_t/κ_s − κ_t) x_t + (κ_s − κ_t) x̂ + (1 − κ_t/κ_s)(1 − κ_s)/K] / (κ_t K x̂(x_t) + 1 − κ_t)

  for x̂ = softmax(u). By Bayes' rule this is Σ_z π(z) q(x_s|x_t, z) with π(z) ∝ x̂(z) ((1 − κ)/K + κ·1[z = x_t]): x̂ is the
  belief about z given the *other* tokens, and the formula itself adds the evidence of x_t. Also in its bound, where
  (Kκx̂(y) + 1 − κ)/(Kκx̂(x_t) + 1 − κ) is the score, the ratio of p_t(·|others). `GMModel` takes just such logits, and adds
  the evidence. So u is handed over as it is, the reversal rates are Duo's, and so is the likelihood bound.

Nothing is unpickled but tensors and plain containers (`torch.load(weights_only=True)`).
"""

from gm_discrete.convert.cli import main
from gm_discrete.convert.conversion import FAMILIES, convert

__all__ = ["FAMILIES", "convert", "main"]
