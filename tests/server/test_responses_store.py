"""What is kept of responses, and for how long."""

from __future__ import annotations

from llama4_edge.server.responses_store import ResponseStore, StoredItem, StoredResponse


def item(name: str, size: int = 10) -> StoredItem:
    return {"id": name, "text": "x" * size}


def response(name: str, items: tuple[StoredItem, ...]) -> StoredResponse:
    return StoredResponse({"id": name, "output": [item(f"of {name}")]}, items)


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(most_responses=2)
    for name in ("a", "b"):
        store.put(response(name, (item(f"in {name}"),)))
    assert store.get("a") is not None
    store.put(response("c", ()))
    assert store.get("b") is None
    assert store.item("in b") is None
    assert store.item("of b") is None
    assert [store.get(name) is not None for name in ("a", "c")] == [True, True]


def test_what_several_responses_share_is_counted_once_and_kept_with_the_last() -> None:
    store = ResponseStore()
    picture = item("picture", 1 << 20)
    first = response("a", (picture,))
    store.put(first)
    one = store.nbytes
    store.put(response("b", first.said))
    assert store.nbytes - one < 1000
    assert store.delete("a")
    assert store.item("picture") is picture
    assert store.nbytes > 1 << 20
    assert store.delete("b")
    assert (len(store), store.nbytes, store.item("picture")) == (0, 0, None)


def test_bytes_are_bounded() -> None:
    store = ResponseStore(most_bytes=100_000)
    for number in range(100):
        store.put(response(str(number), (item(f"in {number}", 20_000),)))
        assert store.nbytes <= 100_000
    assert 3 <= len(store) <= 5
    store.put(response("large", (item("large", 200_000),)))
    assert (len(store), store.nbytes) == (0, 0)


def test_deleting_what_is_not_there_is_said() -> None:
    store = ResponseStore()
    store.put(response("a", ()))
    assert [store.delete("a"), store.delete("a")] == [True, False]
