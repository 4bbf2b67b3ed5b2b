"""Hostile files: checkpoints, and what stands in the folder of a run.

``*_attacks`` return functions by name, each of which takes a path and makes the file there.
"""

import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import tarfile
import zipfile

import torch
from safetensors.torch import save

from ncsn_cli.runs.checkpoints import save_checkpoint

SECRET = "a value that only the environment has"
MEMORY = 300 << 20
SECONDS = 60  # of the processor: against attacks that take for ever, on any machine


def limit(home):
    """In a forked command: memory and processor time that it may take on top, and a home."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)  # waiting takes no processor time
    os.environ["MPLCONFIGDIR"] = os.path.expanduser("~/.cache/matplotlib")  # its list of fonts
    os.environ |= {"HOME": home, "NCSN_SECRET": SECRET}


class Run:
    """A pickle that runs a command when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def content(data):
    """A maker of a file that holds ``data``."""
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def link(target):
    return lambda path: path.symlink_to(target)


def sparse(size, start=b""):
    def make(path):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def listen(path):
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(path.parent)  # a socket's name is short
        end.bind(path.name)


def special_attacks():
    return {
        "a pipe": os.mkfifo,
        "a folder": lambda path: path.mkdir(),
        "a device": link("/dev/zero"),
        "a terminal": link("/dev/tty"),
        "of /proc": link("/proc/self/mem"),
        "endless of /proc": link("/proc/self/pagemap"),
        "a loop": lambda path: path.symlink_to(path),
        "a link": link("/etc/passwd"),
        "a folder's link": link("/etc"),
        "a socket": listen,
        "sparse": sparse(1 << 40),
        "sparse below the limit": sparse((1 << 28) - 1),
        "empty": content(b""),
        "zeros": content(bytes(5000)),
        "no UTF-8": content(b"\xff\xfe\x00{}"),
    }


def zipped(*members, level=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", level) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def tarred(*members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def torched(value, **kwargs):
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    return file.getvalue()


def pickle_attacks(canary, whole):
    """``whole`` is a good checkpoint, for files that are two things at once."""
    touch = f"touch {canary}"
    run = Run(os.system, touch)
    code = f"open({str(canary)!r}, 'w')"
    data = {f"protocol {i}": pickle.dumps(run, protocol=i) for i in range(6)}
    text = b"cposix\nsystem\n(S'" + touch.encode() + b"'\ntR."
    data |= {
        "eval": pickle.dumps(Run(eval, code)),
        "by hand": text,
        "torch zip": torched({"weight": torch.zeros(2), "evil": run}),
        "torch legacy": torched({"evil": run}, _use_new_zipfile_serialization=False),
        "torch of weights": torched({"weight": torch.zeros(2)}),
        "tar": tarred(("storages", text), ("tensors", text), ("pickle", text)),
        "zip": zipped(("archive/data.pkl", text), ("archive/version", b"3")),
        "script": zipped(("m/constants.pkl", text), ("m/code/__torch__.py", b"import os")),
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (1,)}" + text,
        "zip bomb": zipped(("archive/data.pkl", bytes(1 << 26))),
        "appended pickle": whole + text,
        "appended zip": whole + zipped(("data.pkl", text)),
        "pickle in front": text + whole,
        "zip in front": zipped(("data.pkl", text)) + whole,
        "pickle as header": struct.pack("<Q", len(text)) + text,
        "pickle as record": save({"w": torch.zeros(2)}, {"ncsn_cli": text.decode()}),
    }  # fmt: skip
    return {name: content(value) for name, value in data.items()}


def framed(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header_attacks():
    record = {"__metadata__": {"ncsn_cli": json.dumps({"sha256": "", "config": {}})}}
    eight, deep = bytes(8), "[" * 100_000
    many = {f"t{i}": entry([0], 0, 0) for i in range(20_000)}
    headers = {
        "overlap": {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
        "gap": {"a": entry([1], 4, 8)},
        "backwards": {"a": entry([2], 8, 0)},
        "overflow": {"a": entry([1 << 62, 4], 0, 8)},
        "empty but large": {"a": entry([0, 1 << 63], 0, 0), "b": entry([2], 0, 8)},
        "below 0": {"a": entry([-2, -1], 0, 8)},
        "fractions": {"a": entry([2.0], 0, 8)},
        "many axes": {"a": entry([1] * 100_000, 0, 4), "b": entry([1], 4, 8)},
        "type": {"a": entry([8], 0, 8, "F8_E4M3")},
        "shape": {"a": entry("8", 0, 8)},
        "many": many,
        "metadata": {"__metadata__": [1], "a": entry([2], 0, 8)},
        "metadata of numbers": {"__metadata__": {"ncsn_cli": 1}, "a": entry([2], 0, 8)},
        "list": [1],
    }
    texts = {
        "deep record": deep,
        "deep objects": '{"a":' * 100_000,
        "long integer": '{"step": ' + "9" * 5000 + "}",
        "infinity": '{"sha256": "", "step": 1e999}',
        "nan": '{"sha256": "", "step": NaN}',
        "no unicode": '{"sha256": "", "step": "\\ud800"}',
        "brackets": "[" + "[]," * 1_000_000 + "[]]",
    }
    data = {name: framed({**record, **h} if isinstance(h, dict) else h, eight)
            for name, h in headers.items()}  # fmt: skip
    data |= {name: save({}, {"ncsn_cli": text}) for name, text in texts.items()}
    names = b'{"a":1,' + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}"
    data |= {
        "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
        "length -1": b"\xff" * 8 + b"{}",
        "length of the file": struct.pack("<Q", 10) + b"{}",
        "deep header": framed(deep.encode()),
        "a million names": framed(names),
        "twice": framed(b'{"a":1,"a":2}'),
        "header of no UTF-8": framed(b'{"\xff\xfe":1}'),
    }
    makers = {name: content(value) for name, value in data.items()}
    size = (1 << 28) - 1000
    start = framed({**record, "a": entry([size], 0, size, "U8")})
    return makers | {"sparse data": sparse(len(start) + size, start)}


def record_attacks(tensors, record, canary):
    """Checkpoints whose SHA-256 is right, as whoever writes one can compute it."""
    config = record["config"]
    call = {"_target_": "os.system", "_args_": [f"touch {canary}"]}
    written = {"_target_": "pathlib.Path.write_text", "_args_": [str(canary), ""]}
    nested = {"_target_": "hydra.utils.instantiate", "config": call}
    targets = [
        "builtins.eval", "subprocess.Popen", "hydra.utils.instantiate", "ncsn_cli.commands.log",
        "ncsn_cli.models._perceptron", "ncsn_cli.models.torch.load", "ncsn_cli.models.__dict__",
        "ncsn_cli.runs.files.write_atomic", "logging.os.system", "\x1b[2J\n\n\n\nline",
        "x" * 100_000, ["os.system"], None, 7,
    ]  # fmt: skip
    changes = {f"target {str(t)[:30]!r}": ("sampler", {**call, "_target_": t}) for t in targets}
    changes |= {f"call as {group}": (group, call)
                for group in ("dataset", "schedule", "sampler", "init", "model")}  # fmt: skip
    for name, group, values in [
        ("write", "model", written),
        ("nested", "model", {"hidden": nested}),
        ("list of calls", "model", {"hidden": [nested, written]}),
        ("partial", "model", {"_partial_": True}),
        ("arguments", "model", {"_args_": [call]}),
        ("recursive", "model", {"_recursive_": True, "activation": call}),
        ("wide", "model", {"hidden": [10**9]}),
        ("wide twice", "model", {"hidden": [60_000, 60_000]}),
        ("layers", "model", {"hidden": [1] * 300_000}),
        ("interpolation", "model", {"activation": "${oc.env:NCSN_SECRET}"}),
        ("levels", "schedule", {"num_levels": 10**12}),
        ("million levels", "schedule", {"num_levels": 10**6}),
        ("sigma", "schedule", {"sigma_max": "${oc.env:NCSN_SECRET}"}),
        ("weights", "dataset", {"weights": nested}),
        ("points", "dataset", {"num_samples": "${oc.env:NCSN_SECRET}"}),
        ("step size", "sampler", {"step_size": {"a": {"b": [call]}}}),
        ("self", "model", {"self": call}),
    ]:
        changes[name] = (group, {**config[group], **values})
    for group in ("dataset", "model", "sampler"):
        for value in ("os.system", 1, [call]):
            changes[f"{group} = {str(value)[:9]}"] = (group, value)
    makers = {}
    for name, (group, value) in changes.items():
        changed = {**record, "config": {**config, group: value}}
        makers[name] = lambda path, changed=changed: save_checkpoint(path, tensors, changed)
    large = {"network.layers.0.weight": torch.zeros(3, 1)}
    named = {"../../x": torch.zeros(2), "/x": torch.zeros(2)}
    makers["other tensors"] = lambda path: save_checkpoint(path, {**tensors, **large}, record)
    makers["no tensors"] = lambda path: save_checkpoint(path, named, record)
    makers["no configuration"] = lambda path: save_checkpoint(path, tensors, {"step": 1})
    makers["other configuration"] = lambda path: save_checkpoint(path, tensors, {"config": "x"})
    return makers


SCRIPT = "<script>alert(1)</script>"


def yaml_attacks(canary):
    touch = f"touch {canary}"
    texts = {
        "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
                  for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "itself": "a: &a [*a]",
        "deep": "[" * 100_000,
        "deep objects": "{a: " * 20_000,
        "deep blocks": "- " * 20_000 + "x",
        "deep lines": "\n".join(" " * i + "a:" for i in range(1200)),
        "tag": f"!!python/object/apply:os.system ['{touch}']",
        "tag inside": f"a: !!python/object/new:os.system ['{touch}']",
        "name": "a: !!python/name:os.system",
        "module": "a: !!python/module:os",
        "time as number": "a: 1" + ":59" * 200_000,
        "digits": "a: " + "9" * 5000,
        "hexadecimal": "a: 0x" + "f" * 300,
        "date": "a: 2026-01-01",
        "bytes": "a: !!binary aGVsbG8=",
        "set": "a: !!set {x, y}",
        "twice": "a: 1\na: 2",
        "keys": "{1: 2, [3]: 4}",
        "nan": "a: [.nan, .inf]\nb: -.inf",
        "list": "[1, 2]",
        "text": "just text",
        "number": "7",
        "script": f"seed: '{SCRIPT}'\n'{SCRIPT}': '{SCRIPT}'",
        "terminal": 'seed: "\\e[2J\\e]0;x\\a\\n\\n\\u202e"',
        "target": f"model: {{_target_: os.system, command: '{touch}'}}",
        "logging": f"hydra: {{job_logging: {{(): os.system, command: '{touch}'}}, "
        f"searchpath: [/tmp], callbacks: {{a: {{_target_: os.system, command: '{touch}'}}}}, "
        f"launcher: {{_target_: os.system, command: '{touch}'}}}}",
        "override": f"- hydra/launcher._target_=os.system\n- +x=$(touch {canary})\n- {SCRIPT}",
        "environment": "seed: ${oc.env:NCSN_SECRET}",
        "many": "[" + "[]," * 300_000 + "]",
        "large": "a: " + "x" * (1 << 21),
    }  # fmt: skip
    return {name: content(text) for name, text in texts.items()}


def json_attacks():
    deep = '{"a":' * 5000
    number = {"value": 1.0, "floor": 1.0, "ratio": 1.0}
    values = {
        "names": {"perturbed": dict.fromkeys(("../../../x", "/x", "a\nb", "x" * 300), number)},
        "script": {SCRIPT: 1.0, "state": SCRIPT, "error": SCRIPT, "perturbed": {SCRIPT: number}},
        "types": {"perturbed": [1], "excess_loss": [1], "state": {"a": 1}, "error": [[]]},
        "texts": {"perturbed": "x", "excess_loss": "1", "state": 1, "error": 1, "request": []},
        "large": {"excess_loss": 1e308, "score_error": -1e308},
        "largest": {"excess_loss": 9e99, "score_error": -9e99},
        "terminal": {"state": "\x1b[2J\n\n\n\n", "error": "\x1b]0;x\a\u202e"},
        "keys": {"value": 1.0, "perturbed": {"a": {"value": 1.0}}},
        "folder": {"folder": "/", "state": "done"},
        "list": [1, 2],
        "text": "x",
    }
    texts = {
        "deep": deep + "1" + "}" * 5000,
        "deeper": "[" * 1_000_000,
        "nan": '{"excess_loss": NaN, "state": "done"}',
        "infinity": '{"excess_loss": 1e999, "state": "done"}',
        "digits": '{"excess_loss": ' + "9" * 5000 + "}",
        "integer": '{"excess_loss": ' + "9" * 400 + "}",
        "twice": '{"excess_loss": 1, "excess_loss": 2}',
        "no unicode": '{"state": "\\ud800", "error": "\\ud800"}',
        "many": "[" + "[]," * 1_300_000 + "[]]",
        **{name: json.dumps(value) for name, value in values.items()},
    }
    return {f"JSON {name}": content(text) for name, text in texts.items()}


def csv_attacks():
    header = "step,loss,excess_loss,grad_norm,lr,seconds,clipped_grad_norm\n"
    texts = {
        "no columns": "1,2,3\n",
        "more cells": header + "1,2,3,4,5,6,7,8\n",
        "fewer cells": header + "1,2\n",
        "words": header + "1,x,,,,,\n",
        "nan": header + "nan,nan,inf,,,,\n",
        "long": header + "1," + "9" * 200_000 + ",,,,,\n",
        "quotes": header + '"' + "\n" * 1000,
        "NUL": header + "1\0,,,,,,\n",
    }
    return {f"CSV {name}": content(text) for name, text in texts.items()}


def npz_attacks(canary):
    def npy(shape, data=bytes(64), descr="<f4"):
        head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data

    evil = pickle.dumps(Run(os.system, f"touch {canary}"))
    stored = zipfile.ZIP_STORED
    data = {
        "pickle": evil,
        "objects": zipped(("steps.npy", npy("(1,)", evil, "|O")), level=stored),
        "bomb": zipped(("steps.npy", npy("(100000000,)", bytes(400_000_000 // 16)))),
        "shape": zipped(("steps.npy", npy("(1000000000000,)")), level=stored),
        "overflow": zipped(("steps.npy", npy(f"({1 << 62}, 16)")), level=stored),
        "nested": zipped(("steps.npy", npy("(" * 5000)), level=stored),
        "names": zipped(("../../x.npy", npy("(16,)")), ("/x.npy", npy("(16,)")), level=stored),
        "types": zipped(("steps.npy", npy("(16,)")), ("scores.npy", npy("(16,)")), level=stored),
    }
    return {f"NPZ {name}": content(value) for name, value in data.items()}
