"""Ask a store in SQL: scores of features, selections, a library of questions, plots."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

if TYPE_CHECKING:
    from queries.answers import ask
    from queries.connection.session import connect
    from queries.connection.statement import sql
    from queries.plots import plot
    from queries.scores import score
    from queries.selections import select

__all__ = ["ask", "connect", "plot", "score", "select", "sql"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ask": "queries.answers",
            "connect": "queries.connection.session",
            "plot": "queries.plots",
            "score": "queries.scores",
            "select": "queries.selections",
            "sql": "queries.connection.statement",
        },
    )
