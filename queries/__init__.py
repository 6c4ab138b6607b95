"""SQL over a store: sessions, a library of questions, importance of features for concepts, selections, plots."""

from queries.answers import ask
from queries.session import connect

__all__ = ["ask", "connect"]
