"""What a person reads after a run: plots and one self-contained HTML page. Knows no model and no cluster."""

from rayrec.reporting.page import Section, Table, write_page

__all__ = ["Section", "Table", "write_page"]
