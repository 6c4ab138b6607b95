"""Ask a store in SQL: scores of features, selections, a library of questions, plots."""

from queries.answers import ask
from queries.session import connect

__all__ = ["ask", "connect"]
