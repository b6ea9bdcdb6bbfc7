"""Files that are built to run code when they are read: nothing of them runs."""

import builtins
import copyreg
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from gm_discrete import GMModel
from gm_discrete.convert import convert, main
from gm_discrete.convert.archive import Archive
from gm_discrete.convert.pickles import Name, Unread, unpickled, within
from tests.helpers.archives import watched, write_archive
from tests.helpers.published import state_dict


class Calls:
    """Pickled as a call of the function."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple:
        return (self.function, self.arguments, *(() if self.state is None else (self.state,)))


class Active:
    """A class that would touch a file by every way in which pickle makes objects of it."""

    ran: list[str] = []

    def __new__(cls, *arguments: object) -> "Active":
        cls.ran.append("new")
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        self.ran.append("init")

    def __setstate__(self, state: object) -> None:
        self.ran.append("setstate")

    def __getstate__(self) -> dict:
        return {"a": 1}

    def __setattr__(self, name: str, value: object) -> None:
        self.ran.append("setattr")

    def __hash__(self) -> int:
        self.ran.append("hash")
        return 0


class ByNewEx(Active):
    def __reduce_ex__(self, protocol: Any) -> tuple:
        return copyreg.__newobj_ex__, (ByNewEx, (1,), {}), {"a": 1}  # pyright: ignore[reportAttributeAccessIssue]


CANARY = "canary"
COMMAND = f"touch {CANARY}"
CODE = f"open({CANARY!r}, 'w')"

CALLS: dict[str, Any] = {
    "system": Calls(os.system, COMMAND),
    "popen": Calls(subprocess.Popen, ["touch", CANARY]),
    "eval": Calls(builtins.eval, CODE),
    "exec": Calls(builtins.exec, CODE),
    "import": Calls(builtins.__import__, "antigravity"),
    "open": Calls(builtins.open, CANARY, "w"),
    "getattr": Calls(builtins.getattr, Calls(builtins.__import__, "os"), "system"),
    "map": Calls(builtins.list, Calls(builtins.map, os.system, [COMMAND])),
    "reconstructor": Calls(copyreg._reconstructor, Active, object, None, state={"a": 1}),  # pyright: ignore
    "torch.load": Calls(torch.load, CANARY),
    "torch.hub.load": Calls(torch.hub.load, ".", "model", "local"),
    "torch.jit.load": Calls(torch.jit.load, CANARY),
    "torch.save": Calls(torch.save, {}, CANARY),
    "load from bytes": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, COMMAND))),
    "from type": Calls(torch._tensor._rebuild_from_type_v2, os.system, Active, (COMMAND,), {"a": 1}),
    "from numpy": Calls(torch._utils._rebuild_device_tensor_from_numpy, CANARY, torch.float32, "cpu", False),
    "tensor of a call": Calls(torch._utils._rebuild_tensor_v2, Calls(os.system, COMMAND), 0, (1,), (1,), False, {}),
    "parameter of a call": Calls(torch._utils._rebuild_parameter, Calls(os.system, COMMAND), False, {}),
    "instance": Active(),
    "instance by new with keywords": ByNewEx(),
}  # fmt: skip

PROGRAMS: dict[str, bytes] = {
    "protocol 0": f"cposix\nsystem\n(S'{COMMAND}'\ntR.".encode(),
    "result of a call": f"cfunctools\npartial\n(cos\nsystem\ntR(S'{COMMAND}'\ntR.".encode(),
    "instance of old classes": f"(S'{COMMAND}'\nios\nsystem\n.".encode(),
    "object of old classes": f"(cos\nsystem\nS'{COMMAND}'\no.".encode(),
    "dotted names": b"\x80\x04\x8c\x02os\x8c\x0epath.os.system\x93\x8c"
    + bytes([len(COMMAND)])
    + COMMAND.encode()
    + b"\x85R.",
    "name that is a call": b"\x80\x04" + f"cos\nsystem\n(S'{COMMAND}'\ntR".encode() + b"\x8c\x01a\x93.",
    "extension registry": b"\x80\x02\x82\x01)R.",
    "environment": b"cos\nenviron\nS'CANARY'\nS'1'\ns.",
    "modules": b"csys\nmodules\nS'os'\nNs.",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\nI2\ntstb.",
    "attributes of a class": b"ccollections\nOrderedDict\n(N}S'get'\nNstb.",
    "path by persistent id": b"(S'storage'\nctorch\nFloatStorage\nS'../../../canary'\nS'cpu'\nI1\ntQ.",
    "source by persistent id": b"(S'module'\ncos\nsystem\nS'a'\nS'b'\ntQ.",
    "buffers": b"\x80\x05\x97.",
    "no end": b"\x80\x02N",
    "nothing": b"",
    "empty stack": b"\x80\x02.",
    "unknown memory": b"\x80\x02h\x07.",
    "list as a key": b"}]Ns.",
    "long tuple of itself": b"]" + b"2\x86" * 2000 + b".",
    "hash without end": b"}K\x01" + b"2\x86" * 100 + b"Ns.",
    "place for many values": b"\x80\x02Nr\xff\xff\xff\xff.",
    "room for many bytes": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "deep": b"(" * 50_000 + b"N" + b"t" * 50_000 + b".",
}


DATA = (
    "protocol 0", "result of a call", "instance of old classes", "object of old classes", "dotted names",
    "attributes of a function", "attributes of a class", "path by persistent id", "list as a key",
    "long tuple of itself", "hash without end", "place for many values", "deep",
)  # fmt: skip
"""Those of which something inert is made; the others are refused."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, where a canary would be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Active, "ran", [])
    return tmp_path


def assert_nothing_ran(events: list[tuple[str, str]], file: Path) -> None:
    allowed = [("open", str(file))]  # the file itself
    others = [found for found in events if not any(found[0] == kind and text in found[1] for kind, text in allowed)]
    assert others == []
    assert Active.ran == []
    assert not Path(CANARY).exists()
    assert "CANARY" not in os.environ
    assert sys.modules["os"] is os
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_watched__notices_what_a_common_unpickler_would_run(place: Path) -> None:
    """So that the tests below cannot pass by looking at nothing."""
    (file := place / "a").write_bytes(pickle.dumps(CALLS["system"]))
    with watched() as events:
        pickle.loads(file.read_bytes())
    assert {"os.system", "pickle.find_class", "open"} <= {event for event, _ in events}
    assert Path(CANARY).exists()
    pickle.loads(pickle.dumps(ByNewEx()))
    assert {"new", "setstate"} <= {*Active.ran}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_archive__calls_of_a_file_stay_data(place: Path, name: str, protocol: int) -> None:
    if name == "instance by new with keywords" and protocol < 2:
        pytest.skip("protocols 0 and 1 do not have it")
    program = pickle.dumps({"a": CALLS[name], "b": [{1: (CALLS[name],)}], "c": 3}, protocol)
    Active.ran.clear()
    file = write_archive(place / "last.ckpt", program)
    Archive(file).content()  # whatever is imported lazily
    with watched() as events:
        content = Archive(file).content()
    assert_nothing_ran(events, file)
    assert isinstance(content, dict)
    assert content["c"] == 3
    assert isinstance(content["a"], Unread)


@pytest.mark.parametrize("name", PROGRAMS)
def test_archive__hostile_programs_are_data_or_refused(place: Path, name: str) -> None:
    file = write_archive(place / "last.ckpt", PROGRAMS[name])
    message = ""
    with watched() as events:
        try:
            Archive(file).content()
        except ValueError as error:
            message = str(error)
    assert_nothing_ran(events, file)
    assert ("last.ckpt' is damaged" in message) == (name not in DATA)
    assert message.count("damaged") == (name not in DATA)


def test_archive__functions_in_the_extension_registry_are_out_of_reach(place: Path) -> None:
    """They are held by the process, so that an unpickler gets them without looking up their names."""
    program = b"\x80\x02\x82\xf0."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        assert pickle.loads(program) is os.system
        with pytest.raises(ValueError, match=r"last\.ckpt.* is damaged"):
            Archive(write_archive(place / "last.ckpt", program)).content()
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("name", CALLS)
def test_convert__reads_the_network_beside_calls_without_making_them(place: Path, name: str) -> None:
    state = {f"backbone.{key}": tensor for key, tensor in state_dict().items()}
    hyper = {"config": CALLS[name], "tokenizer": CALLS[name]}
    file = place / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": hyper, "callbacks": [CALLS[name]]}, file)
    Active.ran.clear()
    model = GMModel.from_pretrained(convert(file, place / "model", "duo"))
    assert torch.equal(model.heads.tokens.bias, state["backbone.output_layer.linear.bias"])
    assert_nothing_ran([], file)


@pytest.mark.parametrize("at", ["weight", "container", "average", "ema"])
def test_convert__refuses_calls_in_place_of_tensors(place: Path, at: str) -> None:
    call = CALLS["system"]
    state: dict[str, Any] = {f"backbone.{key}": tensor for key, tensor in state_dict().items()}
    content: dict[str, Any] = {"state_dict": state}
    if at == "weight":
        state["backbone.blocks.0.mlp.0.bias"] = call
    elif at == "container":
        content["state_dict"] = call
    else:
        content["ema"] = call if at == "ema" else {"shadow_params": [call] * len(state)}
    torch.save(content, place / "last.ckpt")
    if at in ("weight", "container"):
        with pytest.raises(ValueError, match=r"last\.ckpt.*(no tensors|no known layout)"):
            convert(place / "last.ckpt", place / "model", "duo")
        assert not (place / "model").exists()
    else:  # the last weights are used, and a warning says so
        convert(place / "last.ckpt", place / "model", "duo")
    assert not Path(CANARY).exists()


def test_unpickled__makes_containers_and_bytes_of_every_protocol() -> None:
    value = {
        "a": [1, -2.5, None, True, b"\x00\xff", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        ("x", "y"): 2**70,
        3: "é",
    }
    for protocol in range(6):
        assert unpickled(pickle.dumps(value, protocol)) == value, protocol
    assert unpickled(pickle.dumps({3, 4}, 4)) in ([3, 4], [4, 3])
    recursive: list[Any] = []
    recursive.append(recursive)
    found: Any = unpickled(pickle.dumps(recursive))
    assert found[0] is found


def test_within__follows_names_through_configs_and_objects() -> None:
    value = unpickled(
        pickle.dumps({"a": Calls(complex, 1, state={"_content": {"b": Calls(complex, state={"_val": 3})}})})
    )
    assert within(value, "a", "b") == 3
    assert within(value, "a", "c", "d") is None
    assert within(Name("os", "system"), "module") is None


# ---- tensors


def tensor_program(key: str = "0", size: str = "I2\n", stride: str = "I1\n", offset: str = "I0\n") -> bytes:
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI4\ntQ"
    return f"(S'w'\nctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}({size}t({stride}tI00\n}}tRd.".encode()


def read_tensor(file: Path) -> Any:
    archive = Archive(file)
    content: Any = archive.content()
    return archive.tensor(content["w"])


def test_archive__reads_views_of_one_storage(place: Path) -> None:
    data = torch.arange(4.0).numpy().tobytes()
    file = write_archive(place / "a.ckpt", tensor_program(offset="I1\n", stride="I2\n"), _0=data)
    assert read_tensor(file).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor_program(size="I5\n"), r"out of bounds"),
        (tensor_program(offset="I-1\n"), r"offset|negative"),
        (tensor_program(stride="I-1\n"), r"negative|stride"),
        (tensor_program(size="I1000000\nI1000000\n", stride="I0\nI0\n"), r"shape \(1000000, 1000000\) made of 4 numbers"),
        (tensor_program(size="cos\nsystem\n"), r"as_strided"),
        (tensor_program(key="../../etc/passwd"), r"\.\./\.\./etc/passwd"),
        (tensor_program(key="7"), r"data/7"),
    ],
)  # fmt: skip
def test_archive__refuses_tensors_that_reach_out_of_their_storage(place: Path, program: bytes, message: str) -> None:
    file = write_archive(place / "a.ckpt", program, _0=torch.arange(4.0).numpy().tobytes())
    with pytest.raises(ValueError, match=rf"a\.ckpt.* is damaged.*{message}"):
        read_tensor(file)


def test_archive__refuses_archives_that_torch_save_does_not_write(place: Path) -> None:
    program = tensor_program()
    with zipfile.ZipFile(place / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", program)
    with zipfile.ZipFile(place / "two.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("../../b/data.pkl", program)
    with zipfile.ZipFile(place / "other.ckpt", "w") as archive:
        archive.writestr("../readme", program)
    with zipfile.ZipFile(place / "big.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "big")
    for name, message in {
        "packed": "compressed",
        "two": "2 files data.pkl",
        "other": "0 files",
        "big": "big-endian",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\.ckpt.*{message}"):
            Archive(place / f"{name}.ckpt").content()
    assert sorted(file.name for file in place.iterdir()) == ["big.ckpt", "other.ckpt", "packed.ckpt", "two.ckpt"]


def test_archive__bit_flips_are_found(place: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, place / "a.ckpt")
    data = bytearray((place / "a.ckpt").read_bytes())
    data[len(data) // 2] ^= 4
    (place / "a.ckpt").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.ckpt.*damaged"):
        read_tensor(place / "a.ckpt")


def test_convert_command__says_in_one_line_what_is_wrong_with_a_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = place / "whole.ckpt"
    torch.save({"state_dict": state_dict()}, whole)
    rng = torch.Generator().manual_seed(0)
    junk = bytes(torch.randint(256, (5000,), generator=rng).tolist())
    files = {
        "empty": b"",
        "junk": junk,
        "text": b"<html>404</html>",
        "half": whole.read_bytes()[:20_000],
        "pickle": b"\x80\x02}.",
    }
    for name, data in files.items():
        for ending in ("ckpt", "bin", "safetensors"):
            file = place / f"{name}.{ending}"
            file.write_bytes(data)
            with pytest.raises(SystemExit) as stop:
                main([str(file), str(place / "model"), "--family", "mdlm"])
            lines = capsys.readouterr().err.splitlines()
            assert (stop.value.code, len(lines)) == (2, 1), (file, lines)
            assert file.name in lines[0]
    assert not (place / "model").exists()
