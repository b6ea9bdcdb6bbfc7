"""Published checkpoints as `GMModel` folders: `python -m gm_discrete.convert SOURCE DESTINATION`.

`languages.py` describes LLaDA, Dream and SDAR. MDLM, SEDD and Duo share a network, the DiT of Lou et al. (see
`nn/dit.py`), whose input is the total noise σ̄ ≥ 0 of a process that runs from data to noise. Here time runs the other way,
and the path depends on it through κ alone:

    κ = exp(−σ̄),   log-linear noise: σ̄(τ) = −log(1 − (1 − ε)τ),  so with κ = t:  τ = (1 − t)/(1 − ε)

(SEDD, arXiv 2310.16834, `noise_lib.py`; κ is the α_t = exp(−σ̄) of MDLM, arXiv 2406.07524, and of Duo, arXiv 2506.10892).
As only κ matters, the schedule of the converted model is linear, and the network's input is σ̄ = −log κ(t), clamped to the
end of the original schedule (`GMConfig.noise_range`), where the originals start; here κ goes on to 0. With u(x, σ̄) ∈ ℝᴷ
the network's raw output at one position:

- **MDLM** (SUBS parameterisation). π(z|x) = softmax(u) without the mask symbol, and revealed symbols carry over, as
  `MaskedPath` treats logits u. Unless the model was trained with `time_conditioning`, the input is always σ̄ = 0.

- **SEDD, absorbing** (`graph_lib.py`). exp(u), divided by (K − 1)(e^σ̄ − 1) with `scale_by_sigma`, is the score
  s(y) = p_t(y)/p_t(mask), of which the exact one is s(y) = π(y) κ/(1 − κ) = π(y)/(e^σ̄ − 1). So π ∝ exp(u), with or without
  that factor: it is the same for all y. The network's Z = Σ s(y)(e^σ̄ − 1) need not be 1. SEDD unmasks at the rate hZ, the
  converted model at h, the rate at which symbols were masked. In the likelihood bound SEDD has −log(Zπ(z)) + Z − 1 where
  the converted model has −log π(z), which is not larger, since log Z ≤ Z − 1.

- **SEDD, uniform**, is refused. There p_t(y|others) = κν(y) + (1 − κ)/K for a distribution ν of the data symbol, so that
  every score has s(y)/Σs ≥ (1 − κ)/K. The network's scores may violate this, and ν would then be negative.

- **Duo** (`algo.py`), with the reverse process and the bound of UDLM (arXiv 2412.10193). Its reverse process is

      q(x_s|x_t) = [κ_t K x̂⊙x_t + (κ_t/κ_s − κ_t) x_t + (κ_s − κ_t) x̂ + (1 − κ_t/κ_s)(1 − κ_s)/K] / (κ_t K x̂(x_t) + 1 − κ_t)

  for x̂ = softmax(u). By Bayes' rule this is Σ_z π(z) q(x_s|x_t, z) with π(z) ∝ x̂(z) ((1 − κ)/K + κ·1[z = x_t]): x̂ is the
  distribution of z given the *other* tokens, and the formula itself adds the evidence of x_t. So does its bound, where
  (Kκx̂(y) + 1 − κ)/(Kκx̂(x_t) + 1 − κ) is the score, the ratio of p_t(·|others). `GMModel` has logits with just this
  meaning, and adds the evidence. So u stays as it is, the reversal rates are Duo's, and so is the likelihood bound.

Nothing of a file runs: `pickles.py` reads tensors and containers, and holds any other object as data.
"""

from gm_discrete.convert.cli import main
from gm_discrete.convert.conversion import convert
from gm_discrete.convert.languages import LANGUAGES
from gm_discrete.convert.settings import FAMILIES

__all__ = ["FAMILIES", "LANGUAGES", "convert", "main"]
