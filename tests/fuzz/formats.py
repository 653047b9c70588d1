"""Changing files so that they stay files: what holds checksums and lengths is taken apart, and put together again.

Of bytes changed at random, a checksum in front of the parser refuses nearly all. So a file is taken apart as deep as
its kind is known (a package holds an archive, that a picture, that chunks), one part is changed, and all is put
together with the right lengths and checksums.
"""

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

SHARE = 0.7  # of the changes to a file of a known kind that go into one of its parts
PNG = b"\x89PNG\r\n\x1a\n"
# What JSON can hold where something else is expected: of another type, too large, too deep.
VALUES = ["null", "true", "0", "-1", "1.5", "1e999", "NaN", '""', '"x"', '"\\u001b[2J\\n"', "[]", "{}", "[[]]", "[0]"]
VALUES += [str(2**31), str(2**64), "9" * 5000, "[" * 50_000, '"\\ud800"', '{"x": null}', '["x", 1]']


def changed(data: bytes, rng: random.Random, change: Callable[[bytes], bytes], folder: bool = False) -> bytes:
    """The file with one change.

    change  changes plain bytes
    folder  whether the data are a folder (see `folder_of`), which is always taken apart
    """
    known = next((kind for kind in KINDS if kind[0](data)), None)
    if known is None or not (folder or rng.random() < SHARE):
        return in_json(data, rng) if known is None and rng.random() < SHARE else change(data)
    _, apart, together = known
    try:
        parts = apart(data)
    except Exception:  # damaged, by an earlier change
        return change(data)
    i, action = rng.randrange(len(parts) or 1), rng.random()
    if not parts:
        return change(data)
    if action < 0.85:
        parts[i] = changed(parts[i], rng, change)
    elif action < 0.90:
        del parts[i]
    elif action < 0.95:
        parts.insert(rng.randrange(len(parts)), parts[i])
    else:
        j = rng.randrange(len(parts))
        parts[i], parts[j] = parts[j], parts[i]
    return together(parts)


def in_json(data: bytes, rng: random.Random) -> bytes:
    """JSON with one value exchanged or left out; what is no JSON, as it was but for a byte."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        if not data:
            return b"\0"
        i = rng.randrange(len(data))
        return data[:i] + bytes([rng.choice((0, 1, 127, 128, 255, data[i] ^ 1 << rng.randrange(8)))]) + data[i + 1 :]
    places, mark = [], "@here@"

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(value)
    if not places:
        return rng.choice(VALUES).encode()
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = mark
    return json.dumps(value).replace(f'"{mark}"', rng.choice(VALUES), 1).encode()


# --- kinds of file: how each is known, taken apart, and put together ---


def folder_of(files: dict[str, bytes]) -> bytes:
    """A folder as one file."""
    return from_zip([part for name, content in files.items() for part in (name.encode(), content)])


def files_of(data: bytes) -> dict[str, bytes]:
    """The files of such a folder, by plain names alone."""
    parts = to_zip(data)
    names = [re.sub(r"[^\w.-]", "_", name.decode(errors="replace"))[:100].strip(".") for name in parts[::2]]
    return {name: content for name, content in zip(names, parts[1::2], strict=True) if name}


def to_zip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [part for entry in archive.infolist() for part in (entry.filename.encode(), archive.read(entry))]


def from_zip(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in zip(parts[::2], parts[1::2], strict=False):
            entry = zipfile.ZipInfo(name.decode(errors="replace").replace("\0", "_")[:1000] or "_")
            archive.NameToInfo.pop(entry.filename, None)  # a name twice is a fault worth trying
            archive.writestr(entry, content)
    return file.getvalue()


def to_gzip(data):
    return [zlib.decompressobj(31).decompress(data, 2**24)]


def from_gzip(parts):
    return gzip.compress(b"".join(parts), 1, mtime=0)


def to_tar(data):
    """Headers and contents in turn; a header without its checksum, and without its size where that is the content's."""
    parts = []
    while data.strip(b"\0"):
        header, data = bytearray(data[:512].ljust(512, b"\0")), data[512:]
        size = int(bytes(header[124:136]).strip(b" \0") or b"0", 8)
        header[124:136] = bytes(12)
        parts += [bytes(header), data[:size]]
        data = data[-(-size // 512) * 512 :]
    return parts


def from_tar(parts):
    blocks = []
    for header, content in zip(parts[::2], parts[1::2], strict=False):
        header = bytearray(header[:512].ljust(512, b"\0"))
        if not any(header[124:136]):
            header[124:136] = b"%011o\0" % len(content)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        blocks += [bytes(header), content, bytes(-len(content) % 512)]
    return b"".join([*blocks, bytes(1024)])


def to_png(data):
    parts, place = [], len(PNG)
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        parts.append(data[place + 4 : place + 8 + size])
        place += 12 + size
    return [zlib.decompress(p[4:]).join([b"\0inflated", b""]) if p[:4] == b"IDAT" else p for p in parts]


def from_png(parts):
    chunks = (b"IDAT" + zlib.compress(p[9:]) if p.startswith(b"\0inflated") else p for p in parts)
    return PNG + b"".join(
        struct.pack(">I", max(len(chunk) - 4, 0)) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def to_safetensors(data):
    (size,) = struct.unpack_from("<Q", data)
    about, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    # Values in the header's metadata are themselves JSON: each a part of its own.
    said = about.pop("__metadata__", {})
    return [json.dumps(about).encode(), tensors, *(part.encode() for item in said.items() for part in item)]


def from_safetensors(parts):
    about, tensors, *said = parts if len(parts) > 1 else [*parts, b""]
    said = [part.decode(errors="replace") for part in said]
    text = json.dumps({"__metadata__": dict(zip(said[::2], said[1::2], strict=False))})
    about = text.encode() if about.strip() in (b"{}", b"") else text[:-1].encode() + b", " + about.lstrip()[1:]
    return struct.pack("<Q", len(about)) + about + tensors


def to_npy(data):
    (size,) = struct.unpack_from("<H", data, 8)
    return [data[10 : 10 + size], data[10 + size :]]


def from_npy(parts):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(parts[0]) % 2**16) + b"".join(parts)


KINDS = [
    (lambda data: data[:4] == b"PK\3\4", to_zip, from_zip),
    (lambda data: data[:2] == b"\x1f\x8b", to_gzip, from_gzip),
    (lambda data: data[257:262] == b"ustar", to_tar, from_tar),
    (lambda data: data[:8] == PNG, to_png, from_png),
    (lambda data: data[8:9] == b"{" and data[2:8] == bytes(6), to_safetensors, from_safetensors),
    (lambda data: data[:8] == b"\x93NUMPY\1\0", to_npy, from_npy),
]
