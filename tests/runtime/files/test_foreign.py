"""Files that are no GGUF: each is named, with the next command."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llama4_edge import inspect
from llama4_edge.errors import CheckpointError, ModelFileError
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.model_file import check_model_file
from tests.gguf_maker import tiny_model

_HTML = b"\n<!DOCTYPE html><html><head><title>Hugging Face</title></head></html>"
_DIGEST = "sha256:" + "0123456789abcdef" * 4
_MANIFEST = {
    "schemaVersion": 2,
    "layers": [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "f" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": _DIGEST, "size": 5},
    ],
}

# What a file begins with, and what is said of it.
FILES: dict[str, tuple[bytes, str]] = {
    "an LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 7\n",
        "is a Git LFS pointer, not the file itself. Fetch the files: git lfs pull",
    ),
    "a web page": (_HTML, "found a web page, saved in place of the file. Fetch the file itself"),
    "a web page in capitals": (b"<HTML>", "found a web page"),
    "an error of the hub": (
        b"Entry not found",
        "found the text 'Entry not found'. Fetch the file itself, with: llama4 pull ORG/NAME",
    ),
    "an error in JSON": (b'{"error": "Invalid token"}', 'found JSON: {"error": "Invalid token"}'),
    "a manifest of Ollama": (
        json.dumps(_MANIFEST).encode(),
        f"found a manifest of Ollama. Give the model itself, in Ollama's blobs: "
        f"{_DIGEST.replace(':', '-')}",
    ),
    "GGML": (b"lmgg" + bytes(60), "in the GGML format of before 2023, which llama.cpp no longer"),
    "GGMF": (b"fmgg" + bytes(60), "in the GGMF format of before 2023"),
    "GGJT": (b"tjgg\3\0\0\0" + bytes(60), "in the GGJT format of before 2023"),
    "GGLA": (b"algg" + bytes(60), "a LoRA adapter in the GGLA format"),
    "a pickle": (b"\x80\x02}q\0.", "found a file that is a pickle, as torch.save writes"),
    "a later pickle": (b"\x80\x04\x95", "found a file that is a pickle"),
    "gzip": (gzip.compress(b"GGUF"), "compressed by gzip. Unpack it first, with: gunzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\0\0\0\0", "compressed by zstd"),
    "xz": (b"\xfd7zXZ\0\0\0", "compressed by xz"),
    "bzip2": (b"BZh91AY&SY", "compressed by bzip2"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\0", "a 7z archive"),
    "rar": (b"Rar!\x1a\x07\0\0", "a rar archive"),
    "NumPy": (b"\x93NUMPY\1\0", "a NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "a program": (b"\x7fELF\2\1\1\0", "a program"),
    "a llamafile": (b"MZqFpD='\n", "take the GGUF out of it with: unzip"),
    "a tar": (bytes(257) + b"ustar\0" + bytes(250), "a tar archive. Unpack it first, with: tar"),
    "zeros": (bytes(9000), "found zeros, as a download leaves that was broken off"),
    "letters": (b"gguf" * 3, "found the text 'ggufggufgguf'"),
    "Latin-1": (b"caf\xe9 et th\xe9", "found the first bytes b'caf\\xe9'"),
    "bytes": (b"\1\2\3\4\5\6\7\x08\xff\xff\xff", "found the first bytes b'\\x01\\x02\\x03\\x04'"),
    "nothing": (b"", "is empty, expected a GGUF file"),
    "long text": (b"word " * 9000, f"found the text '{'word ' * 16}…'"),
}


def _refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.problem
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_gguf_is_named(name: str, tmp_path: Path) -> None:
    data, said = FILES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert said in _refused(path)


def test_safetensors_and_what_torch_saves_are_sent_to_the_converter(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    assert f"found a safetensors file. Turn its directory into a GGUF with: llama4 convert " \
        f"{tmp_path}" in _refused(path)  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "a zip archive, as torch.save writes" in _refused(path)


@pytest.mark.parametrize("name", ["sha256-0123456789abcdef", "model", "model.bin", "a b'c.GGUF"])
def test_a_gguf_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / name)
    assert check_model_file(path).path == path
    assert inspect(path, check=True).damage == ()


@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".partial", ".crdownload", ".aria2"])
def test_a_download_that_was_not_finished_is_gone_on_with(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.gguf{suffix}"
    data = tiny_model().write(tmp_path / "model.gguf").read_bytes()
    for length in (0, 5, 1000, len(data) - 5000):
        path.write_bytes(data[:length])
        assert "a download that was not finished; go on with: llama4 pull" in _refused(path)
    path.write_bytes(data)
    assert check_model_file(path).name == "Tiny"


def test_a_link_to_nothing_is_named_with_what_it_leads_to(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.symlink_to("../blobs/0123")
    said = _refused(path)
    assert "is a symbolic link to a file that does not exist, found ../blobs/0123" in said
    path.unlink()
    path.symlink_to(path)
    assert "symbolic links" in _refused(path)


def test_a_name_of_nothing_is_compared_with_those_beside_it(tmp_path: Path) -> None:
    tiny_model().write(tmp_path / "scout-int4.gguf")
    assert f"Did you mean {tmp_path}/scout-int4.gguf?" in _refused(tmp_path / "scout-int4")
    assert "Did you mean scout-int4.gguf?" in _refused(tmp_path / "scuot-int4.gguf")


def test_a_directory_names_the_model_in_it(tmp_path: Path) -> None:
    assert "is not a model file, found a directory" in _refused(tmp_path)
    model = tiny_model().write(tmp_path / "my model.gguf")
    (tmp_path / "mmproj-f16.gguf").write_bytes(b"GGUF")
    (tmp_path / "README.md").write_text("a card")
    said = f"found one GGUF in it, my model.gguf. Give that file: '{model}'"
    assert said in _refused(tmp_path)
    with pytest.raises(ModelFileError, match="found one GGUF in it"):
        inspect(tmp_path)
    tiny_model().write(tmp_path / "other.gguf")
    assert "found 2 GGUFs in it, the first is my model.gguf" in _refused(tmp_path)


def test_a_directory_of_parts_names_the_first(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(b"GGUF")
    assert "found one GGUF in it, m-00001-of-00003.gguf" in _refused(tmp_path)


def test_a_directory_of_the_hub_s_cache_names_the_model_in_it(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40) / "Q4_K_M"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    tiny_model().write(repository / "blobs" / "0123")
    (snapshot / "model.gguf").symlink_to("../../../blobs/0123")
    for path in (repository, snapshot.parent):
        assert f"Give that file: {snapshot}/model.gguf" in _refused(path)


def test_a_directory_one_level_too_high_names_the_model_below(tmp_path: Path) -> None:
    (tmp_path / "Q4_K_M").mkdir()
    tiny_model().write(tmp_path / "Q4_K_M" / "model.gguf")
    assert "found one GGUF in it, Q4_K_M/model.gguf" in _refused(tmp_path)


def test_a_checkpoint_directory_is_sent_to_the_converter(scout_checkpoint: Path) -> None:
    said = _refused(scout_checkpoint)
    assert "is a checkpoint directory, not a model file. Turn it into a GGUF with: " in said
    assert f"llama4 convert {scout_checkpoint}" in said


def test_links_that_lead_in_a_circle_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("a.gguf")
    (tmp_path / "d").symlink_to("d")
    (tmp_path / "up").symlink_to("..")
    assert "is not a model file, found a directory" in _refused(tmp_path)
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def test_an_empty_directory_is_still_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def test_a_name_that_is_not_utf8_is_one_like_any_other(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "\udcff.gguf")
    assert check_model_file(path).path == path
    assert inspect(path, check=True).damage == ()
    directory = tmp_path / "d\udcff"
    directory.mkdir()
    assert "is not a model file, found a directory" in _refused(directory)
    path.rename(directory / "a\udcfe.gguf")
    assert "found one GGUF in it, a\udcfe.gguf" in _refused(directory)
