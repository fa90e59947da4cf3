"""Names of the files of a split model; gguf's own format is the reference."""

from __future__ import annotations

import gguf

from llama4_edge.parts import PartName, part_named


def test_a_part_is_named_as_the_gguf_package_names_it() -> None:
    assert str(PartName("scout-int4", 2, 3)) == gguf.SHARD_NAME_FORMAT.format("scout-int4", 2, 3)


def test_a_name_is_read_back() -> None:
    assert part_named("a-00001-of-00002-00002-of-00012.gguf") == PartName("a-00001-of-00002", 2, 12)
    assert part_named("scout.gguf") is None
    assert part_named("scout-1-of-2.gguf") is None
    assert part_named("-00001-of-00002.gguf") is None


def test_a_part_knows_its_siblings() -> None:
    names = [str(part) for part in PartName("x", 2, 3).siblings()]
    assert names == ["x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"]
