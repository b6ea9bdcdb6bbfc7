from gm_discrete.models.config import GMConfig
from gm_discrete.models.generation_config import GMGenerationConfig
from gm_discrete.models.modeling import GMModel
from gm_discrete.models.outputs import GMGenerateOutput, GMModelOutput, Trajectory

__all__ = ["GMConfig", "GMGenerateOutput", "GMGenerationConfig", "GMModel", "GMModelOutput", "Trajectory"]
