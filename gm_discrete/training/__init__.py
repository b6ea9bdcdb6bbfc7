from gm_discrete.training.annealing import CausalAnnealing
from gm_discrete.training.checkpoints import is_complete, last_complete_checkpoint
from gm_discrete.training.ema import EMACallback
from gm_discrete.training.lock import locked
from gm_discrete.training.optimizers import MuonAdamW
from gm_discrete.training.publishing import published
from gm_discrete.training.trainer import GMTrainer

__all__ = [
    "CausalAnnealing",
    "EMACallback",
    "GMTrainer",
    "MuonAdamW",
    "is_complete",
    "last_complete_checkpoint",
    "locked",
    "published",
]
