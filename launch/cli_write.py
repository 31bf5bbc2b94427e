"""`eyas write`: queries for documents that nobody labelled."""

from typing import Annotated

import typer
from rich.console import Console


def write(
    config: Annotated[str, typer.Argument(metavar="CONFIG", show_default=False, help="A YAML file of what to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, e.g. count=1.", show_default=False),
    ] = None,
) -> None:
    """Let a chat model write queries for documents, and keep those that find their document.

    The model is asked over HTTP (any OpenAI-compatible server), for each document once: answers are kept on disk. The
    result, queries.jsonl, is a source of a recipe like any other.

    [bold]Examples[/]

      eyas write queries.yaml

      eyas write queries.yaml documents.limit=20 out=trial

      eyas write queries.yaml model.url=http://localhost:8000/v1 model.concurrency=64
    """
    from data_prep.write import QUERIES, WriteConfig, write_queries
    from embedding.config import load_config

    settings = load_config(WriteConfig, config, overrides or ())
    found = write_queries(settings)
    asked = found["answers"]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found["left out"].items()) or "none"
    lines = (
        f"{found['queries']:,} queries for {found['documents with a query']:,} of {found['documents']:,} documents; "
        f"asked {asked.get('asked for', 0):,} times, {asked.get('kept from before', 0):,} answers were there",
        f"left out: {left_out}",
        f"kind: jsonl, path: {settings.out / QUERIES}, query: query, positive: document, group: group, "
        "instruction_column: instruction",
    )
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
