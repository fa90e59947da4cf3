"""What `inspect`, `convert`, `pull`, `worker` and `doctor` show, as tables.

Promises that a narrow terminal folds them, a pipe gets them whole, and that every number comes from
the value at hand. Does not read files or measure anything; whoever shows a value has made its texts
visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..units import bytes_text, count_text, seconds_text
from .visible import LONGEST_LINE, LONGEST_NAME, shortened

if TYPE_CHECKING:
    from ..chat.session import SessionSummary
    from ..convert.report import MatrixUse, Report
    from ..hub.pull import Pulled
    from ..quant.summary import FileSummary, RoleSummary, TensorSummary
    from ..runtime.bindings.devices import Device
    from ..runtime.doctor import Diagnosis
    from ..runtime.files.damage import Damage
    from ..runtime.workers.worker import Worker

# Arrays up to this length are shown (rope sections, end tokens); a vocabulary is counted.
_LONGEST_ARRAY = 8
_SHOWN = 5  # tensors that a line names

# Messages of a session that are shown: the first and the last.
_FIRST, _LAST = 2, 4

_SOUND = "every tensor was read, and holds numbers"

# Of a finding, by its level.
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def metadata_text(value: object) -> str:
    """One line for a metadata value: long arrays as their length, long text as its beginning."""
    if isinstance(value, (list, tuple)):
        if len(value) > _LONGEST_ARRAY:
            return f"{len(value):,} values"
        return "[" + ", ".join(metadata_text(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.7g}"  # as many digits as the 32 bits of a GGUF hold
    return shortened(str(value), LONGEST_NAME)


def summary_view(summary: FileSummary, *, tensors: bool) -> RenderableType:
    """What `inspect` shows of a GGUF or a checkpoint; `tensors` adds a line for each tensor."""
    parts: list[RenderableType] = [
        title(summary.path),
        facts_grid((metadata_text(key), metadata_text(it)) for key, it in _flat(summary.metadata)),
        "",
    ]
    if tensors:
        parts += [_tensors_table(summary.tensors), ""]
    return Group(*parts, roles_table(summary.roles), "", facts_grid(_totals(summary)))


def session_view(session: SessionSummary) -> RenderableType:
    """What `inspect` shows of a session: what its state is of, and the beginnings of messages."""
    facts = [("size", f"{bytes_text(session.bytes)}, version {session.version}")]
    if (of := session.fingerprint) is not None:
        facts += [
            ("written by", f"{session.writer}, llama-cpp-python {of.llama_cpp}"),
            ("model", f"{of.model}, {of.recipe}, {bytes_text(of.bytes)}"),
            ("KV cache", f"K {of.type_k}, V {of.type_v}; rotated: {of.rotation}"),
            ("flash attention", of.flash_attention),
            ("experts a token", f"{of.n_expert_used}"),
            ("read", f"{session.tokens:,} tokens, {bytes_text(session.state_bytes)}"),
        ]
    if session.checkpoints:
        facts.append(("checkpoints", "after " + ", ".join(f"{at:,}" for at in session.checkpoints)))
    if session.torn:
        facts.append(("not whole", f"{session.torn:,} bytes at the end, which are left out"))
    messages = session.conversation.messages
    facts.append(("messages", f"{len(messages):,}"))
    shown = [*messages[:_FIRST], *messages[_FIRST:][-_LAST:]]
    lines = [(message.role, shortened(str(message), LONGEST_NAME)) for message in shown]
    if len(shown) < len(messages):
        lines.insert(_FIRST, ("…", f"{len(messages) - len(shown):,} more"))
    return Group(title(session.path), facts_grid(facts), "", facts_grid(lines))


def _fallback_lines(report: Report) -> Iterator[str]:
    """One line for each pair of types, since the layers of a model are alike."""
    by_types: dict[tuple[str, str], list[str]] = {}
    for fallback in report.fallbacks:
        by_types.setdefault((fallback.got, fallback.wanted), []).append(fallback.tensor)
    for (got, wanted), tensors in by_types.items():
        more = f" and {len(tensors) - 1:,} more" if len(tensors) > 1 else ""
        yield f"{tensors[0]}{more}: {got}, since rows do not fit {wanted}"


def _flat(metadata: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """A checkpoint's config is nested; ``text_config.hidden_size`` is one line like any other."""
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _importance_lines(used: MatrixUse) -> Iterator[tuple[str, str]]:
    """How much of a conversion the importance matrix weighed."""
    if not used.weighed and not used.without:
        yield "importance", f"{used.file} weighs nothing: no tensor is of a type that takes weights"
        return
    yield "importance", f"{used.weighed:,} tensors weighed with {used.file}"
    if used.without:
        yield "no weights", _listed(used.without)
    for label, weighed, tensors in (
        ("no tokens", "with all columns alike", used.unseen),
        ("few tokens", "with the file's substitutes", used.substituted),
    ):
        if tensors:
            count = sum(map(len, tensors.values()))
            where = _listed([_expert_text(*item) for item in tensors.items()])
            yield label, f"{count:,} experts, weighed {weighed}: {where}"


def _expert_text(name: str, experts: Sequence[int]) -> str:
    """``blk.1.ffn_up_exps.weight 3 7``: a tensor with its experts, of which the first are shown."""
    more = " …" if len(experts) > _SHOWN else ""
    return f"{name} {' '.join(map(str, experts[:_SHOWN]))}{more}"


def _listed(names: Sequence[str]) -> str:
    """The first few of them."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def report_view(report: Report) -> RenderableType:
    """What `convert` shows when it is done, or would be."""
    facts = [
        ("recipe", report.recipe),
        ("parameters", count_text(report.parameters)),
        ("size", f"{bytes_text(report.bytes)}, from {bytes_text(report.source_bytes)}"),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
    ]
    if not report.dry_run:
        read = report.source_bytes * (1 - report.resumed_at)
        rate = bytes_text(round(read / report.seconds)) if report.seconds else "?"
        since = f" since it went on at {report.resumed_at:.0%}" if report.resumed_at else ""
        facts.append(("time", f"{seconds_text(report.seconds)}{since}, {rate}/s read"))
    facts += [("fallback", line) for line in _fallback_lines(report)]
    if report.importance is not None:
        facts += _importance_lines(report.importance)
    facts += report.layout.items()
    facts += _left_out(report.left_out)
    facts += [("note", note) for note in report.notes]
    written = "would write" if report.dry_run else "wrote"
    facts += [(written, path) for path in report.outputs]
    return Group(roles_table(report.roles), "", facts_grid(facts))


def pulled_view(pulled: Pulled) -> RenderableType:
    """What `pull` shows: where the files are, and how much of them had to travel."""
    facts = [
        ("from", f"{pulled.repository} at {pulled.commit[:12]}"),
        ("size", f"{bytes_text(pulled.bytes)}, {bytes_text(pulled.bytes_fetched)} fetched"),
        *(("model" if part == pulled.model else "part", part) for part in pulled.parts),
    ]
    if pulled.projector is not None:
        facts.append(("projector", pulled.projector))
    return facts_grid(facts)


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """What `doctor` shows: what is here, then each finding with the command that mends it."""
    findings: list[RenderableType] = []
    for finding in diagnosis.findings:
        findings.append(_finding(finding.level, finding.what))
        if finding.fix:
            # A command is copied as a whole: the terminal may wrap it, nothing here does.
            findings.append(
                Text(f"  {shortened(finding.fix, LONGEST_LINE)}", no_wrap=True, overflow="ignore")
            )
    return Group(
        facts_grid(_machine(diagnosis)), "", _devices_table(diagnosis.devices), "", *findings
    )


def worker_view(worker: Worker) -> RenderableType:
    """Which devices a worker lends, and how they are used from elsewhere."""
    use = f"--workers {worker.reached_at}"
    facts = [("listens on", worker.endpoint), ("use it with", f"llama4 run MODEL {use}")]
    if all(device.type == "cpu" for device in worker.devices):
        facts.insert(0, ("lends", bytes_text(worker.lent_bytes)))
    return Group(_devices_table(worker.devices), "", facts_grid(facts))


def damage_view(damage: Sequence[Damage], sound: str = _SOUND) -> RenderableType:
    """What `inspect --check` found: a line for each damage, or the line that there is none."""
    if not damage:
        return _finding("ok", sound)
    levels = {True: "problem", False: "note"}
    return Group(*(_finding(levels[item.certain], _place(item)) for item in damage))


def _place(damage: Damage) -> str:
    if damage.tensor is None:
        return damage.what
    return f"{damage.tensor} at byte {damage.offset} of {damage.file}: {damage.what}"


def _finding(level: str, what: str) -> Table:
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=max(map(len, _STYLES)), style=_STYLES[level])
    line.add_column(overflow="fold")
    line.add_row(level, Text(shortened(what, LONGEST_LINE)))
    return line


def _machine(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    for package, number in diagnosis.versions.items():
        yield package, number or "not installed"
    library, cpu = diagnosis.library, diagnosis.cpu
    if library is not None:
        yield "llama.cpp", f"{library.llama_cpp} (ggml {library.ggml}, {library.ggml_commit})"
        yield "backends", ", ".join(library.backends)
        yield "RPC", "built in" if library.rpc else "not built in"
        yield "pictures", "built in" if diagnosis.mtmd else "not built in"
        yield "library", str(Path(library.paths[0]).parent) if library.paths else "unknown"
    cores = f"{cpu.logical_cores} logical cores"
    yield "CPU", cpu.model
    yield "cores", f"{cpu.physical_cores} physical, {cores}" if cpu.physical_cores else cores
    if cpu.features:
        used = (name if value == "1" else f"{name}={value}" for name, value in cpu.features.items())
        yield "built for", " ".join(used)
    if diagnosis.disk_free_bytes is not None:
        yield "disk free here", bytes_text(diagnosis.disk_free_bytes)


def _devices_table(devices: Iterable[Device]) -> Table:
    table = table_of("device", "type", ">memory", ">free", "*description")
    for device in devices:
        table.add_row(
            shortened(device.name, LONGEST_NAME),
            device.type,
            "unknown" if device.total_bytes is None else bytes_text(device.total_bytes),
            "unknown" if device.free_bytes is None else bytes_text(device.free_bytes),
            shortened(device.description, LONGEST_NAME),
        )
    return table


def roles_table(roles: Iterable[RoleSummary]) -> Table:
    """Parameters, bytes, bits per weight and types of each role."""
    table = table_of("role", ">tensors", ">params", ">size", ">bits/w", "*types")
    for role in roles:
        table.add_row(
            role.role,
            f"{role.tensors:,}",
            count_text(role.parameters),
            bytes_text(role.bytes),
            f"{role.bits_per_weight:.2f}",
            _types_text(role.types),
        )
    return table


def _totals(summary: FileSummary) -> list[tuple[str, str]]:
    experts = summary.expert_bits_per_weight
    return [
        ("kind", "GGUF" if summary.kind == "gguf" else "checkpoint"),
        ("parameters", f"{count_text(summary.parameters)} in {len(summary.tensors):,} tensors"),
        ("size", bytes_text(summary.bytes)),
        ("bits per weight", f"{summary.bits_per_weight:.2f}"),
        ("of the experts", "no experts" if experts is None else f"{experts:.2f}"),
        *summary.layout.items(),
        *_left_out(summary.left_out),
        *(("note", note) for note in summary.notes),
    ]


def _left_out(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """How many tensors are left out, with an example; nothing where none is."""
    if names:
        count = f"{len(names):,} tensors, such as " if len(names) > 1 else ""
        yield "left out", count + names[0]


def _types_text(types: Mapping[str, int]) -> str:
    ordered = sorted(types.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(name if len(types) == 1 else f"{name} x{count}" for name, count in ordered)


def _tensors_table(tensors: Iterable[TensorSummary]) -> Table:
    table = table_of("*tensor", "type", ">shape", ">size")
    for tensor in tensors:
        shape = "x".join(str(size) for size in tensor.shape)
        table.add_row(
            shortened(tensor.name, LONGEST_NAME), tensor.type, shape, bytes_text(tensor.bytes)
        )
    return table


def title(text: str) -> Text:
    """The name of what is shown."""
    return Text(shortened(text, LONGEST_LINE), style="bold", overflow="fold")


def facts_grid(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and what is to be said of each, a line for each."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", overflow="fold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        texts = Text(shortened(name, LONGEST_NAME)), Text(shortened(value, LONGEST_LINE))
        grid.add_row(*texts)
    return grid


def table_of(*columns: str) -> Table:
    """A table of the named columns: ``>`` sets one to the right, ``*`` lets one fold."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.lstrip(">*"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("*"),
            overflow="fold" if column.startswith("*") else "ellipsis",
        )
    return table
