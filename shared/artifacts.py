"""A model's files: which are taken, what their headers say, and the manifest of a version.

A name's ending says what a file is to be, and its content has to agree:

    .safetensors  .gguf  .onnx       weights
    .json                            configurations, tokenizers, indexes of shards
    .txt  .md  .jinja  LICENSE       text: vocabularies, merges, cards, chat templates
    .model                           a tokenizer of SentencePiece or tiktoken
    .tar  .tar.gz  .tgz              archives of these, stored as the files in them

Everything else is refused, archives in archives too. Pickles (`.bin`, `.pt` …, and by their content) run code when
they are loaded, so they are taken only where that is asked for. Chat templates are programs as well: whoever renders
one does it in a sandbox, as transformers does.
"""

import ast
import fnmatch
import hashlib
import json
import pickletools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shared import gguf, onnx, safetensors
from shared.contents import Content, remembering_its_head, values
from shared.errors import ArtifactRefused, PickleRefused

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
TEXT_BYTES = 64 * 1024 * 1024
FILE_BYTES = 50 * 1024**3
VERSION_BYTES = 500 * 1024**3
FILES = 1000
PATH_CHARACTERS = 512
HEAD_BYTES = 4096
VALUE_CHARACTERS = 200
VALUES = 32
DEPTH = 3
# What Supabase Storage takes as an object's key, without what has a meaning in addresses or shells.
SEGMENT = re.compile(r"[A-Za-z0-9_.+=@,()\-](?:[A-Za-z0-9_.+=@,() \-]*[A-Za-z0-9_.+=@,()\-])?")
FORMATS = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".onnx": "onnx",
    ".json": "json",
    ".txt": "text",
    ".md": "text",
    ".jinja": "text",
    ".model": "tokenizer",
}
TEXT_NAMES = {"LICENSE", "NOTICE"}
ARCHIVES = (".tar", ".tar.gz", ".tgz")
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
RUNS_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
CALLS = {"INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX"}
ARGUMENTS = {"TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GET", "BINGET", "LONG_BINGET", "DUP"}
OPCODES = 100_000  # no text reads as a pickle for so long
JSON_VALUES = 3_000_000  # the largest tokenizers, of 260,000 words and 510,000 merges, have less than 2 million
# Of configurations: what tells one model from another.
KEPT = {
    "model_type",
    "architectures",
    "torch_dtype",
    "dtype",
    "peft_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What a version may have; files whose path or name fits a pattern of `leave_out` aren't looked at.

    Trainers leave pickles beside the weights (`training_args.bin`, `optimizer.pt`) that no model needs.
    """

    allow_pickle: bool = False
    leave_out: tuple[str, ...] = ()
    file_bytes: int = FILE_BYTES
    version_bytes: int = VERSION_BYTES
    files: int = FILES

    def leaves_out(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(fnmatch.fnmatchcase(path, each) or fnmatch.fnmatchcase(name, each) for each in self.leave_out)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file that may be stored, and what its header says."""

    path: str
    size: int
    format: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a version as its manifest names it."""

    path: str
    size: int
    sha256: str
    format: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version's files as canonical JSON; its hash is the version's."""

    body: bytes
    sha256: str


def manifest(
    model_name: str, version: str | int, files: Sequence[StoredFile], provenance: Mapping[str, Any] | None = None
) -> Manifest:
    """The same files make the same bytes: sorted, without spaces, in UTF-8. It is written when all files are there."""
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "modelName": model_name,
        "version": version,
        "files": [asdict(file) for file in sorted(files, key=lambda file: file.path)],
        "provenance": provenance or {},
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Manifest(text.encode(), hashlib.sha256(text.encode()).hexdigest())


def is_archive(path: str) -> bool:
    """Whether the file is an archive by its name."""
    return path.lower().endswith(ARCHIVES)


class Names:
    """The paths of a version, each admitted once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: dict[str, str] = {MANIFEST: MANIFEST}
        self._bytes = 0

    def admit(self, path: str, size: int) -> None:
        """Raises `ArtifactRefused` for a path that is none or is there already, and for more than a version may have.

        Paths that differ in case only are one file on many disks.
        """
        check_path(path)
        folded = path.casefold()
        if folded in self._seen:
            raise ArtifactRefused(f"{path}: the name is taken by {self._seen[folded]}: rename one of them.")
        self._seen[folded] = path
        self._bytes += size
        if len(self._seen) - 1 > self._rules.files:
            raise ArtifactRefused(f"There are more than {self._rules.files} files: a model has fewer.")
        if size > self._rules.file_bytes:
            raise ArtifactRefused(f"{path}: {_gigabytes(size)} are more than {_gigabytes(self._rules.file_bytes)}.")
        if self._bytes > self._rules.version_bytes:
            raise ArtifactRefused(f"The files have more than {_gigabytes(self._rules.version_bytes)} together.")


def check_path(path: str) -> None:
    """Raises `ArtifactRefused` for what would leave the version's folder, or what Storage takes for no key."""
    shown = "".join(character if character.isprintable() else "?" for character in path[:100])
    if not path or len(path) > PATH_CHARACTERS:
        raise ArtifactRefused(f"{shown}: a path has 1 to {PATH_CHARACTERS} characters: rename it.")
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            raise ArtifactRefused(f"{shown}: the path leaves its folder: give it a plain relative one.")
        if not SEGMENT.fullmatch(segment):
            raise ArtifactRefused(f"{shown}: rename it: letters, digits and _ - . + = @ , ( ) are taken.")


def check(path: str, content: Content, rules: Rules) -> FileFacts:
    """What the file is, from its header alone. Raises `ArtifactRefused`, naming the file and what to do."""
    check_path(path)
    if content.size == 0:
        raise ArtifactRefused(f"{path}: it is empty: upload it again, or leave it out.")
    content = remembering_its_head(content)
    name = path.rpartition("/")[2]
    suffix = "." + name.rpartition(".")[2].lower()
    try:
        if suffix in PICKLES:
            return _pickle(path, content, rules)
        form = "text" if name in TEXT_NAMES else FORMATS.get(suffix)
        if form is None:
            raise _unknown(content)
        return FileFacts(path, content.size, form, _clean(_read(form, content)))
    except ArtifactRefused as error:
        raise type(error)(f"{path}: {error.message}") from error


def _read(form: str, content: Content) -> dict[str, Any]:
    """What the reader of the format says; where it finds none, what the content is instead is the better message."""
    try:
        if form in ("text", "tokenizer"):  # nearly anything is one
            _refuse_disguised(content)
        return READERS[form](content)
    except PickleRefused:
        raise
    except ArtifactRefused:
        _refuse_disguised(content)
        raise


def _json(content: Content) -> dict[str, Any]:
    """Parsed to its end; NaN and Infinity pass, for Python's own writer puts them into configurations."""
    document = _whole(content)
    if values(document) > JSON_VALUES:
        raise ArtifactRefused(f"it has more than {JSON_VALUES} values: split it, or leave it out.")
    try:
        # Only what is kept of an object stays: a vocabulary as a dictionary would need ten times its size.
        parsed = json.loads(document, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k in KEPT})
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused("it is no JSON: correct it, or leave it out.") from error
    return parsed if isinstance(parsed, dict) else {}


def _text(content: Content) -> dict[str, Any]:
    data = _whole(content)
    _refuse_pickle(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ArtifactRefused("it is no text in UTF-8: convert it, or leave it out.") from error
    if "\0" in text:
        raise ArtifactRefused("it is no text: leave it out.")
    return {}


def _tokenizer(content: Content) -> dict[str, Any]:
    """SentencePiece's `ModelProto`, whose first field is a piece, or tiktoken's lines. The one isn't read further."""
    if content.read(0, 1) != b"\x0a":
        return _text(content)
    if content.size > TEXT_BYTES:
        raise ArtifactRefused(f"no tokenizer has more than {TEXT_BYTES // 1024**2} MB: leave it out.")
    return {"pieces": sum(number == 1 for number, _ in onnx.fields(content))}


def _whole(content: Content) -> bytes:
    if content.size > TEXT_BYTES:
        raise ArtifactRefused(f"it is larger than {TEXT_BYTES // 1024**2} MB: split it, or leave it out.")
    return content.read(0, content.size)


def _pickle(path: str, content: Content, rules: Rules) -> FileFacts:
    if not rules.allow_pickle:
        raise PickleRefused(
            "a pickle runs code when it is loaded: save the weights as safetensors, leave the file out, "
            "or allow pickles for this version."
        )
    return FileFacts(path, content.size, "pickle")


def _unknown(content: Content) -> ArtifactRefused:
    _refuse_disguised(content)
    known = " ".join([*FORMATS, *ARCHIVES])
    return ArtifactRefused(f"its ending is none of {known}: convert it, or leave it out.")


def _refuse_disguised(content: Content) -> None:
    """Raises for what is no model's file whatever it is called."""
    head = content.read(0, HEAD_BYTES)
    _refuse_pickle(head)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise ArtifactRefused("it is an archive or compressed: unpack it, or make it a .tar.gz of its own.")
    if head[257:262] == b"ustar":
        raise ArtifactRefused("it is an archive: name it .tar, and put no archive into another.")


def _refuse_pickle(data: bytes) -> None:
    if _is_pickle(data):
        raise PickleRefused("it is a pickle by its content, which runs code: save the weights as safetensors.")


def _is_pickle(head: bytes) -> bool:
    if head.startswith(b"PK\x03\x04"):  # torch.save: a zip whose first file is <name>/data.pkl
        return b"/data.pkl" in head or b"pickle" in head
    if head.startswith(b"\x93NUMPY"):
        return _has_objects(head)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    try:
        return _runs_code(head)
    except Exception:  # `genops` raises what it likes for what is no pickle
        return False


def _runs_code(data: bytes) -> bool:
    """Whether an unpickler runs code in it, as protocols 0 and 1, which are printable and have no mark.

    It does at a call that finds its arguments on the stack, whatever follows: words are opcodes too, but make no calls.
    Raises for what ends before, or is none.
    """
    stack: list[str] = []  # the opcodes that have put something there
    seen = set()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        takes = len(opcode.stack_before)
        if pickletools.markobject in opcode.stack_before:
            takes = opcode.stack_before.index(pickletools.markobject)
            while stack.pop() != "MARK":
                pass
        if opcode.name in ("GLOBAL", "INST") and not re.fullmatch(r"\S+ \S+", str(argument)):
            return False  # it would be a module and a name in it
        if opcode.name in CALLS and (opcode.name != "REDUCE" or stack[-1] in ARGUMENTS):
            return True
        if takes > len(stack):
            return False
        del stack[len(stack) - takes :]
        stack += [opcode.name] * len(opcode.stack_after)
        seen.add(opcode.name)
        if number == OPCODES:
            return True
    return bool(seen & RUNS_CODE)


def _has_objects(head: bytes) -> bool:
    """Whether an array of NumPy's is one of objects, which it pickles."""
    found = re.search(rb"\{[^}]*\}", head)
    try:
        return "O" in str(ast.literal_eval(found[0].decode("latin-1")).get("descr")) if found else False
    except (ValueError, SyntaxError, AttributeError):
        return True


def _clean(value: Any, depth: int = 0) -> Any:
    """Metadata as a manifest and a database take it: short, and without control characters or halves of others."""
    if depth > DEPTH:
        return None
    if isinstance(value, str):
        kept = (each for each in value[:VALUE_CHARACTERS] if unicodedata.category(each) not in ("Cc", "Cs"))
        return "".join(kept)
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(each, depth + 1) for key, each in _first(value.items()) if each is not None}
    if isinstance(value, list | tuple):
        return [_clean(each, depth + 1) for each in _first(value)]
    return value if isinstance(value, bool | int) else None if value is None else _clean(str(value))


def _first(values: Iterable[Any]) -> list[Any]:
    return [each for _, each in zip(range(VALUES), values, strict=False)]


def _gigabytes(size: int) -> str:
    return f"{size / 1024**3:.1f} GB"


READERS = {
    "safetensors": safetensors.facts,
    "gguf": gguf.facts,
    "onnx": onnx.facts,
    "json": _json,
    "text": _text,
    "tokenizer": _tokenizer,
}
