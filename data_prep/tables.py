"""The tables: `texts`, `examples` and `tokens` as ordinary `datasets` folders, read straight from the memory map.

Shapes: N texts, M examples.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from embedding.files import read_json, read_manifest, sha256_file, write_json
from embedding.instruction import Role, Template

TEXTS = pa.schema(
    [
        ("key_hi", pa.uint64()),
        ("key_lo", pa.uint64()),
        ("role", pa.string()),
        ("task", pa.string()),
        ("text", pa.string()),
        ("lang", pa.string()),
    ]
)
ROWS = pa.large_list(pa.int64())
EXAMPLES = pa.schema(
    [
        ("query", pa.int64()),
        ("positives", ROWS),
        ("negatives", ROWS),
        ("score", pa.float32()),
        ("group", pa.int64()),
        ("source", pa.string()),
    ]
)
TOKENS = pa.schema([("ids", pa.large_list(pa.int32()))])
DATA_FILE = "data-00000-of-00001.arrow"


def write_table(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as a folder that `datasets.load_from_disk` reads; one batch in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / DATA_FILE), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    state: dict[str, Any] = dict.fromkeys(("_format_columns", "_format_type", "_split"))
    state |= {"_data_files": [{"filename": DATA_FILE}], "_fingerprint": sha256_file(folder / DATA_FILE)[:16]}
    state |= {"_format_kwargs": {}, "_output_all_columns": False}
    write_json(folder / "state.json", state)
    write_json(folder / "dataset_info.json", {})


def read_table(folder: Path, schema: pa.Schema) -> pa.Table:
    """The table of a `datasets` folder, memory-mapped: nothing is read until it is touched.

    Raises:
        ValueError: no such folder, a damaged file, or other columns.
    """
    state = folder / "state.json"
    if not state.is_file():
        raise ValueError(f"{folder}: not a datasets folder (no state.json); prepare the data again")
    tables = []
    for entry in read_json(state)["_data_files"]:
        path = folder / entry["filename"]
        try:
            tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path}: damaged ({error}); delete the folder and prepare the data again") from None
    table = pa.concat_tables(tables)
    if table.schema.names != schema.names:
        expected, found = ", ".join(schema.names), ", ".join(table.schema.names)
        raise ValueError(f"{folder}: expected the columns {expected}; found {found}; prepare the data again")
    return table


class Ragged(NamedTuple):
    """Rows of different lengths in two flat arrays."""

    offsets: np.ndarray
    """int64 [rows + 1]."""
    values: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> Self:
        """From flat values and the length of each row."""
        return cls(_offsets(counts), values)

    @classmethod
    def of_arrow(cls, array: pa.Array) -> Self:
        """Views of a list array's buffers."""
        return cls(array.offsets.to_numpy(), array.values.to_numpy())

    def to_arrow(self) -> pa.Array:
        """A list array over the same memory."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))

    @property
    def counts(self) -> np.ndarray:
        """The length of each row: int64 [rows]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The row of each value: int64 [values]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def row(self, row: int) -> np.ndarray:
        """The values of one row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: np.ndarray) -> Self:
        """The given rows, in the order given; the time is that of what is taken, however large the whole is."""
        starts = self.offsets[rows]
        offsets = _offsets(self.offsets[rows + 1] - starts)
        return type(self)(
            offsets, self.values[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))]
        )

    def without(self, gone: np.ndarray) -> Self:
        """The rows without the values where `gone` (bool [values]) is true."""
        counts = np.bincount(self.owners[~gone], minlength=len(self.counts))
        return type(self)(_offsets(counts), self.values[~gone])


class Texts:
    """The texts table: one row for each distinct (role, task, text)."""

    def __init__(self, table: pa.Table) -> None:
        self.roles, self.tasks = table["role"], table["task"]
        self.texts, self.langs = table["text"], table["lang"]
        self.keys = np.column_stack([table["key_hi"].to_numpy(), table["key_lo"].to_numpy()])
        """uint64 [N, 2]: the content keys of (role, task, text)."""
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self.texts.chunks)])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `folder` (`.../texts`)."""
        return cls(read_table(folder, TEXTS))

    def __len__(self) -> int:
        return len(self.keys)

    def role(self, row: int) -> Role:
        """On which side the text stands: query or document."""
        role: Role = self.roles[row].as_py()
        return role

    def task(self, row: int) -> str:
        """The instruction of a query; "" for none."""
        return str(self.tasks[row])

    def text(self, row: int) -> str:
        """The text itself, without any prompt."""
        return str(self.texts[row])

    def lang(self, row: int) -> str:
        """The language code the source gave; "" for none."""
        return str(self.langs[row])

    def take(self, rows: np.ndarray) -> Self:
        """The given rows as a table of their own, in memory."""
        columns = [self._take(column, rows) for column in (self.roles, self.tasks, self.texts, self.langs)]
        return type(self)(pa.table([*self.keys[rows].T, *columns], schema=TEXTS))

    def _take(self, column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
        """Rows of a column in the order given. Arrow's own `take` joins all chunks first: seconds for each call on many
        texts, and an error above 2 GiB of them."""
        order = np.argsort(rows, kind="stable")
        borders = np.searchsorted(rows[order], self._starts)
        parts = [
            column.chunk(k).take(pa.array(rows[order[borders[k] : borders[k + 1]]] - self._starts[k]))
            for k in np.flatnonzero(np.diff(borders)).tolist()
        ]
        taken = pa.chunked_array(parts, type=column.type)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return taken if (order[1:] > order[:-1]).all() else taken.take(pa.array(back))

    def prompted(self, template: Template, rows: np.ndarray) -> tuple[list[str], list[str]]:
        """(prompts, texts) of the given rows, the prompts as `template` makes them."""
        made: dict[tuple[Role, str], str] = {}
        prompts = []
        roles, tasks, texts = (self._take(column, rows).to_pylist() for column in (self.roles, self.tasks, self.texts))
        for role, task in zip(roles, tasks, strict=True):
            if (role, task) not in made:
                made[role, task] = template.prompt(role, task)
            prompts.append(made[role, task])
        return prompts, texts


class Examples:
    """The examples table: training rows as rows of the texts table."""

    def __init__(self, table: pa.Table) -> None:
        self.queries: np.ndarray = table["query"].to_numpy()
        """int64 [M]."""
        self.positives = Ragged.of_arrow(_joined(table["positives"]))
        self.negatives = Ragged.of_arrow(_joined(table["negatives"]))
        self.scores: np.ndarray = table["score"].to_numpy()
        """float32 [M]; NaN where a row has none."""
        self.groups: np.ndarray = table["group"].to_numpy()
        """int64 [M]; rows of one group are never each other's negatives; -1: in no group."""
        encoded = table["source"].dictionary_encode().combine_chunks()
        self.sources: np.ndarray = encoded.indices.to_numpy()
        """int32 [M]: positions in `source_names`."""
        self.source_names: list[str] = encoded.dictionary.to_pylist()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `folder` (`.../examples`)."""
        return cls(read_table(folder, EXAMPLES))

    def __len__(self) -> int:
        return len(self.queries)

    def positives_of(self, row: int) -> np.ndarray:
        """Rows of the texts table: int64 [number of positives]; none for a single text."""
        return self.positives.row(row)

    def negatives_of(self, row: int) -> np.ndarray:
        """Rows of the texts table: int64 [number of negatives]."""
        return self.negatives.row(row)


class Tokens:
    """The tokens table: whole id rows (prompt + text + special tokens) aligned with the texts table."""

    def __init__(self, table: pa.Table, suffix: int) -> None:
        self._chunks = [Ragged.of_arrow(chunk) for chunk in table["ids"].chunks]
        self._starts = np.cumsum([0, *(len(chunk.offsets) - 1 for chunk in self._chunks)])
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(chunk.counts for chunk in self._chunks)])
        """int64 [N]: tokens of each text, uncut."""
        self.suffix = suffix
        """Special tokens at the end of every row, the EOS among them; a cut keeps them."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder that `tokenize_texts` wrote.

        Raises:
            ValueError: no such folder, or a damaged one.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder}: no tokens here (no manifest.json); tokenize the data first")
        return cls(read_table(folder, TOKENS), int(manifest["suffix"]))

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, row: int) -> np.ndarray:
        """int32 [length], a read-only view of the file."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[chunk].row(row - int(self._starts[chunk]))


def pieces(rows: int, size: int) -> Iterator[np.ndarray]:
    """The rows from 0 to `rows` in runs of at most `size`: int64 [size]."""
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))


def _joined(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, where it lies if it is one already (`combine_chunks` copies it then too)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
