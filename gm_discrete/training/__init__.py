from gm_discrete.training.adapters import add_lora, load_adapter
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
    "add_lora",
    "is_complete",
    "last_complete_checkpoint",
    "load_adapter",
    "locked",
    "published",
]
