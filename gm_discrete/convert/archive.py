"""Files of `torch.save`: their content without code (see `pickles`), and single tensors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from gm_discrete.convert.pickles import Unread, unpickled
from gm_discrete.convert.sources import line

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "IntStorage": torch.int32,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Archive:
    """A file of `torch.save`. Tensors are read on first access: the state of an optimizer stays in the file.

    Args:
        file: in the format of torch ≥ 1.6, a zip archive.

    Raises:
        ValueError: it is another archive, or damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self._damaged(error) from error
        pickles = [name for name in self.zip.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"source={str(file)!r} is a zip archive with {len(pickles)} files data.pkl; expected one")
        self.root = pickles[0].removesuffix("data.pkl")
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def content(self) -> object:
        """The pickled object: containers, numbers, strings, and `Unread` objects, some of which are tensors."""
        if f"{self.root}byteorder" in self.zip.namelist() and self._bytes("byteorder") != b"little":
            raise ValueError(f"source={str(self.file)!r} was written on a big-endian machine")
        program = self._bytes("data.pkl")
        try:
            return unpickled(program)
        except Exception as error:  # damaged programs raise errors of many kinds
            raise self._damaged(error) from error

    def tensor(self, value: object) -> Tensor | None:
        """The tensor, if this object of the content is one.

        Raises:
            ValueError: the archive does not hold it, or not as much of it.
        """
        match value:
            case Unread(("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, *_)):
                flat = self._numbers(storage)
            case _:
                return None
        try:
            tensor = flat.as_strided(shape, strides, offset)
        except (ValueError, TypeError, RuntimeError) as error:
            raise self._damaged(error) from error
        if tensor.numel() > flat.numel():
            raise self._damaged(ValueError(f"a tensor of shape {tuple(tensor.shape)} made of {flat.numel()} numbers"))
        return tensor

    def _numbers(self, storage: object) -> Tensor:
        match storage:
            case ("storage", ("torch", str(kind)), str(key), _, _) if kind in DTYPES:
                dtype = DTYPES[kind]
            case _:
                raise self._damaged(ValueError("a tensor of an unknown kind"))
        if (key, dtype) not in self.storages:
            data = bytearray(self._bytes(f"data/{key}"))
            if len(data) % dtype.itemsize:
                raise self._damaged(ValueError(f"data/{key} ends within a number"))
            self.storages[key, dtype] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key, dtype]

    def _bytes(self, name: str) -> bytes:
        """One file of the archive, which `torch.save` never compresses, so that its size is at most that of the archive."""
        try:
            entry = self.zip.getinfo(self.root + name)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, which torch.save does not do")
            return self.zip.read(entry)
        except Exception as error:  # damaged archives raise errors of many kinds
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"source={str(self.file)!r} is damaged, or was not written by torch.save: {line(error)}")
