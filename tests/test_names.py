"""Names of tests begin with what is tested."""

import ast
import re
from pathlib import Path

FORM = re.compile(r"test_[a-z0-9]+(_[a-z0-9]+)*__[a-z0-9]+(_[a-z0-9]+)*")  # test_subject__statement
HERE = Path(__file__).parent


def test_names__are_subject_and_statement() -> None:
    names = [
        (node.name, str(file.relative_to(HERE)))
        for file in HERE.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    assert len(names) > 500
    assert [(name, file) for name, file in names if not FORM.fullmatch(name)] == []
