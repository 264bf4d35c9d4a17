"""The ctypes layer against the header, by a C program that prints what the compiler makes of it."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness import skip

from ferry import _c, errors

HEADER = Path(__file__).parents[2] / "include" / "ferry" / "ferry.h"


def header():
    if not HEADER.exists():
        skip(f"{HEADER} is not here")
    return HEADER.read_text()


def plain(text):
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.S)


def enumerators():
    bodies = re.findall(r"typedef enum \w+ \{(.*?)\}", plain(header()), flags=re.S)
    return [name for body in bodies for name in re.findall(r"\b(FERRY_[A-Z0-9_]+)\s*=", body)]


def ask(lines):
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not cc:
        skip("no C compiler here")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "ask.c"), Path(folder, "ask")
        body = "\n".join(f'    printf("%s %lld\\n", "{name}", (long long)({value}));' for name, value in lines)
        source.write_text(
            f"#include <ferry/ferry.h>\n#include <stdio.h>\nint main(void) {{\n{body}\n    return 0;\n}}\n"
        )
        include = str(HEADER.parents[1])
        subprocess.run([cc, "-std=c11", "-I", include, str(source), "-o", str(program)], check=True)
        out = subprocess.run([str(program)], check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def test_sizes_and_offsets():
    header()
    lines = []
    for name, struct in _c.STRUCTS.items():
        lines.append((name, f"sizeof({name})"))
        lines += [(f"{name}.{f[0]}", f"offsetof({name}, {f[0]})") for f in struct._fields_]
        lines += [(f"{name}.{f[0]}:size", f"sizeof((({name} *)0)->{f[0]})") for f in struct._fields_]
    said = ask(lines)
    for name, struct in _c.STRUCTS.items():
        assert ctypes.sizeof(struct) == said[name], name
        for field in struct._fields_:
            at = getattr(struct, field[0])
            assert (at.offset, at.size) == (said[f"{name}.{field[0]}"], said[f"{name}.{field[0]}:size"]), (
                name,
                field[0],
            )


def test_every_struct_and_field_is_here():
    text = plain(header())
    structs = dict(re.findall(r"typedef struct (\w+) \{(.*?)\n\} \w+;", text, flags=re.S))
    assert set(structs) == set(_c.STRUCTS)
    for name, body in structs.items():
        fields = []
        for line in body.split(";"):
            line = re.sub(r"\[[^\]]*\]", "", line).strip()
            if line:
                fields += [part.split()[-1].lstrip("*") for part in line.split(",")]
        assert fields == [f[0] for f in _c.STRUCTS[name]._fields_], name


def test_magic_numbers():
    magic = dict(re.findall(r"#define (FERRY_MAGIC_\w+)\s+(0x[0-9a-f]+)ull", header()))
    ours = {"FERRY_MAGIC_" + n[6:].upper(): s.MAGIC for n, s in _c.STRUCTS.items() if issubclass(s, _c.Sized)}
    assert {n: int(v, 16) for n, v in magic.items()} == ours
    config = _c.GroupConfig()
    assert (config.size, config.magic) == (ctypes.sizeof(config), _c.GroupConfig.MAGIC)


def test_enumerators():
    names = enumerators()
    said = ask([(n, n) for n in names])
    assert len(said) == len(set(names)) > 30
    for name, value in said.items():
        assert getattr(_c, name[len("FERRY_") :]) == value, name
    said = ask([(n, n) for n in ("FERRY_MAX_DIMS", "FERRY_MAX_TOPK", "FERRY_MAX_RANKS")])
    assert said == {"FERRY_MAX_DIMS": _c.MAX_DIMS, "FERRY_MAX_TOPK": _c.MAX_TOPK, "FERRY_MAX_RANKS": _c.MAX_RANKS}


def test_functions():
    declared = re.findall(r"FERRY_API\s+([\w\s\*]+?)\b(ferry_\w+)\(([^;]*?)\);", plain(header()), flags=re.S)
    assert {name for _, name, _ in declared} == set(_c.FUNCTIONS)
    for result, name, arguments in declared:
        count = 0 if arguments.strip() == "void" else arguments.count(",") + 1
        assert count == len(_c.FUNCTIONS[name][0]), name
        if name != "ferry_status_name":
            assert (result.strip() == "ferry_status") == (name in _c.returns_status), name


def test_every_status_has_an_exception():
    body = re.search(r"typedef enum ferry_status \{(.*?)\}", plain(header()), flags=re.S).group(1)
    statuses = {int(v) for v in re.findall(r"=\s*(\d+)", body)} - {0}
    assert set(errors._BY_CODE) == statuses
    for kind in errors._CLASSES:
        assert kind("x").status in kind.__doc__


def test_version():
    numbers = re.findall(r"#define FERRY_VERSION_\w+ (\d+)", header())
    import ferry

    assert ferry.__version__ == ".".join(numbers)
