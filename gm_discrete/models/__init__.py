"""`GMModel`, the Hugging Face class."""

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.outputs import GMGenerateOutput, Trajectory
from gm_discrete.models.card import Card
from gm_discrete.models.modeling import GMModel
from gm_discrete.models.outputs import GMModelOutput
from gm_discrete.nn.config import GMConfig

__all__ = ["Card", "GMConfig", "GMGenerateOutput", "GMGenerationConfig", "GMModel", "GMModelOutput", "Trajectory"]
