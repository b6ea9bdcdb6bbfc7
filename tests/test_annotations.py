"""Parameters have types that say something."""

from pathlib import Path

from tests.annotations import parameters


def test_annotations__counts_what_a_small_module_holds(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "class A:\n    def f(self, a: Any, b: dict[str, Any], *c: Any, d, **e: int): ...\n    async def g(self): ...\n",
        encoding="utf-8",
    )
    found = {parameter.name: parameter.annotation for parameter in parameters(tmp_path)}
    assert found == {"a": "Any", "b": "dict[str, Any]", "c": "Any", "d": None, "e": "int"}


def test_annotations__fewer_than_one_in_a_hundred_parameters_is_bare_any() -> None:
    found = list(parameters())
    bare = [parameter for parameter in found if parameter.is_any]
    assert len(bare) < len(found) / 100, [f"{one.file.name}:{one.line} {one.name}" for one in bare]
    assert [parameter for parameter in found if parameter.annotation is None] == []
