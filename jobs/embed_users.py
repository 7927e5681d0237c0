"""A content ranker's embeddings of all users: python -m jobs.embed_users --model M --content C --tokens T --out OUT.

Of users as they are now; beside the embeddings stand the interest text that the model read and the summary that EmbSum wrote.
As jobs.embed_content_items: resumable, through Ray Data, put in force by one rename.
"""

from dataclasses import dataclass
from pathlib import Path

from jobs.command_line import read
from jobs.embed_content_items import EmbedContent, embed, trained_interest
from rayrec.data.content.embeddings import EmbeddingsRecord
from rayrec.errors import told
from rayrec.families.content.bundle import load_content_ranker
from rayrec.registry import resolve_model


@dataclass(frozen=True)
class EmbedUsers(EmbedContent):
    """Embed the users of a content log."""

    interest: str | None = None
    """Version of their texts that the model reads; None = that of its training."""


def run(command: EmbedUsers) -> EmbeddingsRecord:
    bundle = load_content_ranker(Path(resolve_model(command.model).path))
    return embed(command, "users", command.interest or trained_interest(bundle))


def main() -> None:
    with told():
        run(read(EmbedUsers, description=__doc__))


if __name__ == "__main__":
    main()
