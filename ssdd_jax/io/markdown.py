"""Tables in Markdown."""

from collections.abc import Sequence


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's Markdown, the first column aligned left and the others right.

    Example:
        >>> print(to_markdown(["method", "probe"], [["ours", "76.1"]]))
        | method | probe |
        |:--|--:|
        | ours | 76.1 |
    """
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([line(header), "|:--" + "|--:" * (len(header) - 1) + "|", *map(line, rows)])
