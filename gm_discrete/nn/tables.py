"""Large tensors of a path, stored with the weights of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.nn.names import module_name
from gm_discrete.paths import Path


class PathTables(nn.Module):
    """The tables of a path (`Path.tables`) as buffers, such as the embeddings of a `MetricPath`.

    A path that is built from JSON knows only their shapes. It gets its tables when the buffers are loaded. Buffers keep
    their precision where a model is cast: rounded distances would define another path.

    Args:
        path: its tables are copied, if it has them already.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        known = path.tables()
        for name, shape in path.table_shapes().items():
            # On the CPU also where models are built on the meta device, to be loaded: NaN marks what is still missing.
            missing = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
            self.register_buffer(module_name(name), known[name].clone() if name in known else missing)
        self.register_load_state_dict_post_hook(lambda module, keys: module.load_path())

    @torch.no_grad()
    def load_path(self) -> None:
        """Sets the path's tables to the buffers, once these hold values."""
        buffers = dict(self.named_buffers())
        if buffers and all(not table.is_meta and bool(table.isfinite().all()) for table in buffers.values()):
            self.path.load_tables({name: buffers[module_name(name)] for name in self.path.table_shapes()})
            for name, table in self.path.tables().items():  # in the precision that the path stores
                name = module_name(name)
                setattr(self, name, table.to(buffers[name].device, copy=True))

    @torch.no_grad()
    def restore(self) -> None:
        """Sets the buffers that were not loaded to the tables that the path has from its JSON, as in version 0.1."""
        for name, table in self.path.tables().items():
            name = module_name(name)
            buffer = self.get_buffer(name)
            if not getattr(buffer, "_is_hf_initialized", False):
                setattr(self, name, table.to("cpu" if buffer.is_meta else buffer.device, copy=True))
        self.load_path()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, table in self.path.tables().items():  # version 0.1 kept them in the path's JSON
            state_dict.setdefault(prefix + module_name(name), table)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, buffer in self.named_buffers(recurse=False):
            moved = fn(buffer)
            setattr(self, name, moved if moved.dtype == buffer.dtype else buffer.to(moved.device))
        return self
