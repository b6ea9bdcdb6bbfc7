from gm_discrete.models.config import GMConfig
from gm_discrete.models.generation import GMGenerateOutput
from gm_discrete.models.generation_config import GMGenerationConfig
from gm_discrete.models.modeling import GMModel, GMModelOutput

__all__ = ["GMConfig", "GMGenerateOutput", "GMGenerationConfig", "GMModel", "GMModelOutput"]
